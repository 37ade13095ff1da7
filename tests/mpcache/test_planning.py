"""What planning costs whoever waits for it."""

import subprocess
import sys


def test_a_plan_does_without_torchs_compiler() -> None:
    """Its import, which shapes of some operations bring about, takes each process a second before the first token."""
    program = (
        "import sys; from mpcache.generation.plan import *; from mpcache.policies import *\n"
        "from mpcache.generation.request import GenerationRequest as Request\n"
        "from mpcache.model.shapes import *\n"
        "for shape in ('gpt2', 'llama-7b'):\n"
        "    model = model_shape(shape, 2, 256)\n"
        "    for name in available_policies():\n"
        "        for temperature in (0.0, 0.7):\n"
        "            settings = policy_settings(name)\n"
        "            request = Request(\n"
        "                prompt_tokens=200, max_new_tokens=2, temperature=temperature, policy=settings)\n"
        "            for _ in plan_parts(model, request): pass\n"
        "sys.exit('torch._dynamo' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=600).returncode == 0
