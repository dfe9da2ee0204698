"""Several questions about a picture that is encoded once: python examples/talk.py MODEL PICTURE FILE

Saves the conversation to FILE, then continues it in two ways.
"""

import sys

import fastvlm_mlx

model, picture, file = sys.argv[1:]
session = fastvlm_mlx.Session(fastvlm_mlx.load(model), system="Answer in one sentence.")
first = session.generate("What is in the picture?", [picture], max_tokens=24)
second = session.generate("Which colors are there?", max_tokens=24)
for answer in (first, second):
    print(f"{answer.text}  [{answer.vision_s + answer.prefill_s:.2f} s, {answer.cached_tokens} cached]")
session.save(file)

other = session.fork()
for one, question in ((session, "Is it a photograph?"), (other, "Is it a drawing?")):
    print(one.generate(question, max_tokens=24).text)
