"""N prompts through distilabel's TextGeneration, its cache on. Arguments: N, base URL, folder."""

import sys

from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import TextGeneration

if __name__ == "__main__":
    n, url, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    rows = [{"instruction": f"Question {i}: why is the sky blue?"} for i in range(n)]
    with Pipeline(name="peer", cache_dir=folder) as pipeline:
        load = LoadDataFromDicts(data=rows, batch_size=64)
        llm = OpenAILLM(
            model="m", base_url=url, api_key="none", generation_kwargs={"max_new_tokens": 64}
        )
        load >> TextGeneration(llm=llm, input_batch_size=64)
    pipeline.run(use_cache=True)
