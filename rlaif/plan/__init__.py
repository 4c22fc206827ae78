"""What a recipe would take, before anything is asked: calls, tokens, money, time and disk."""
