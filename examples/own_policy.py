"""A new cache policy: it keeps the newest tokens of the prompt. The same class runs in plaintext and privately."""

import mpcache


@mpcache.register_policy
class Newest(mpcache.Policy):
    name = "newest"
    summary = "the last tokens of the prompt"
    mpc_cost = "nothing beyond attention to what is left"

    def evict(self) -> None:  # once, after the prompt
        n = self.prompt_tokens
        for layer in range(self.config.layers):
            self.keep_ranges(layer, (max(0, n - self.budget), n))


model = mpcache.load_model(mpcache.DEMO_MODEL)
prompt = model.encode(mpcache.DEMO_PROMPT.read_text())[-64:]
plain = mpcache.generate(model, prompt, max_new_tokens=4, policy="newest:budget=0.25")
private = mpcache.InProcess(model).generate(prompt, max_new_tokens=4, policy="newest:budget=0.25")
print(f"in plaintext {plain.text!r}, privately {private.text!r}")
