"""N prompts through DataDreamer's Prompt step, its cache on. Arguments: N, base URL, folder."""

import sys

from datadreamer import DataDreamer
from datadreamer.llms import OpenAI
from datadreamer.steps import DataSource, Prompt

if __name__ == "__main__":
    n, url, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    with DataDreamer(folder):
        llm = OpenAI(model_name="gpt-4", base_url=url, api_key="none")
        prompts = [f"Question {i}: why is the sky blue?" for i in range(n)]
        source = DataSource("prompts", data={"prompts": prompts})
        Prompt(
            "answers",
            inputs={"prompts": source.output["prompts"]},
            args={"llm": llm, "n": 1, "batch_size": 64, "max_new_tokens": 64},
        )
