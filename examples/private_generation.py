"""A private answer: first with all three parties in this process, then between three processes of this machine."""

import mpcache

model = mpcache.load_model(mpcache.DEMO_MODEL)
prompt = model.encode(mpcache.DEMO_PROMPT.read_text())[-64:]

with mpcache.InProcess(model) as parties:
    answer = parties.generate(prompt, max_new_tokens=4)
print(f"in one process: {answer.text!r}, {answer.prefill.cost.online_bytes / 1e6:.0f} MB to the first token")

with mpcache.LocalProcesses(mpcache.DEMO_MODEL) as parties:
    stream = parties.stream(prompt, max_new_tokens=4)
    print("in three processes:", end=" ")
    for piece in stream:
        print(piece, end="", flush=True)
print(f"\n{stream.answer.decode.seconds / max(1, len(stream.answer.tokens) - 1):.2f} s for each token after the first")
