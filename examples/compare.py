"""Two pictures, placed in the middle of a sentence: python examples/compare.py MODEL FIRST SECOND"""

import sys

import fastvlm_mlx

model, first, second = sys.argv[1:]
vlm = fastvlm_mlx.load(model)
prompt = vlm.prompt(
    "Here is one picture: <image> and here another: <image> What is the difference?",
    images=[first, second],
    system="Answer in one sentence.",
)
sampling = fastvlm_mlx.Sampling(temperature=0.7, top_p=0.9, seed=1)
answer = vlm.generate(prompt, max_tokens=48, sampling=sampling)
print(answer.text)
