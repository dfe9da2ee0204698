"""Ask about a picture and read the answer as it comes: python examples/ask.py MODEL PICTURE [QUESTION]"""

import sys

import fastvlm_mlx
from fastvlm_mlx import Finished, Prefilled, Token

model, picture, *question = sys.argv[1:]
vlm = fastvlm_mlx.load(model)
prompt = vlm.prompt(" ".join(question) or "Describe the image.", images=[picture])
for event in vlm.stream(prompt, max_tokens=64):
    match event:
        case Prefilled(vision_s, prefill_s, image_tokens, text_tokens):
            vision = f"{image_tokens} picture tokens in {vision_s:.2f} s"
            text = f"{text_tokens} text tokens, prefill {prefill_s:.2f} s"
            print(f"[{vision}; {text}]", file=sys.stderr)
        case Token(text=text):
            print(text, end="", flush=True)
        case Finished(text=rest):
            print(rest)
