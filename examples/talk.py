"""Several questions about a picture, which is looked at once: python examples/talk.py MODEL PICTURE FILE

The conversation is saved to FILE, and two ways of going on with it are tried.
"""

import sys

import fastvlm_mlx

model, picture, file = sys.argv[1:]
session = fastvlm_mlx.Session(fastvlm_mlx.load(model), system="Answer in one sentence.")
first = session.generate("What is in the picture?", [picture], max_tokens=24)
second = session.generate("Which colours are there?", max_tokens=24)
for answer in (first, second):
    print(f"{answer.text}  [{answer.vision_s + answer.prefill_s:.2f} s, {answer.reused_tokens} known]")
session.save(file)

other = session.fork()
for one, question in ((session, "Is it a photograph?"), (other, "Is it a drawing?")):
    print(one.generate(question, max_tokens=24).text)
