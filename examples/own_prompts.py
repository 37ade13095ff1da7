"""What cache policies cost in answers: your model, your prompts, in plaintext.

usage: python examples/own_prompts.py [MODEL_FOLDER PROMPT_FILE...]     (default: the demo model and its day sheet)
"""

import sys
from pathlib import Path

import mpcache

folder, *files = sys.argv[1:] or [str(mpcache.DEMO_MODEL), str(mpcache.DEMO_PROMPT)]
model = mpcache.load_model(folder)
prompts = [Path(file).read_text() for file in files]
policies = ["full", "mpcache", "mpcache:keep_ratio=1", "snapkv", "streaming"]
for quality in mpcache.compare_policies(model, prompts, policies, max_new_tokens=8):
    print(
        f"{quality.policy:22} as the full cache {quality.exact_match:4.0%}, tokens {quality.token_match:4.0%}, "
        f"perplexity {quality.perplexity:6.2f}, attends to {quality.attended:4.0%}"
    )
