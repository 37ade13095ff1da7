"""Small random models of both families, made by transformers and saved as Hugging Face folders."""

from pathlib import Path

import torch


def save_random_model(folder: Path, family: str, **changes: object) -> torch.nn.Module:
    """A randomly initialised model in `folder`; returns transformers' own model, in evaluation mode."""
    import transformers

    torch.manual_seed(0)
    if family == "llama":
        settings: dict = dict(
            vocab_size=96,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
        )
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**settings, **changes}))
    else:
        settings = dict(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=128)
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**settings, **changes}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.2)  # gains and biases that do something
            else:
                parameter.mul_(4)
    model.eval().save_pretrained(folder)
    return model
