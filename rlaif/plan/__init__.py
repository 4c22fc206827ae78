"""What a run would take, before anything is asked: calls, tokens, money, time and disk."""
