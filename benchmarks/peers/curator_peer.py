"""N prompts through bespokelabs-curator, its cache on. Arguments: N, base URL, folder."""

import sys

from bespokelabs import curator


class Ask(curator.LLM):
    def prompt(self, row: dict) -> str:
        return row["question"]

    def parse(self, row: dict, response: str) -> dict:
        return {"answer": response}


if __name__ == "__main__":
    n, url, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    rows = [{"question": f"Question {i}: why is the sky blue?"} for i in range(n)]
    llm = Ask(
        model_name="m",
        backend="openai",
        generation_params={"max_tokens": 64},
        backend_params={
            "base_url": url,
            "api_key": "none",
            "max_requests_per_minute": 10_000_000,
            "max_tokens_per_minute": 1_000_000_000,
            "max_concurrent_requests": 64,
        },
    )
    llm(rows, working_dir=folder)
