"""Ask `fastvlm-mlx serve` with OpenAI's own package (pip install openai).

fastvlm-mlx serve -m 0.5b
python examples/openai_client.py cat.jpg "What is it doing?"
"""

import base64
import mimetypes
import os
import sys
from pathlib import Path

from openai import OpenAI


def main(picture: str, question: str = "Describe the picture in one sentence.") -> None:
    server = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8080/v1")
    client = OpenAI(base_url=server, api_key=os.environ.get("OPENAI_API_KEY", "none"))
    kind = mimetypes.guess_type(picture)[0] or "image/jpeg"
    url = f"data:{kind};base64,{base64.b64encode(Path(picture).read_bytes()).decode()}"
    stream = client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": url}},
                    {"type": "text", "text": question},
                ],
            }
        ],
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in stream:
        for choice in chunk.choices:
            print(choice.delta.content or "", end="", flush=True)
        if chunk.usage:
            print(f"\n[{chunk.usage.prompt_tokens} prompt tokens, {chunk.usage.completion_tokens} generated]")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        raise SystemExit((__doc__ or "").strip())
    main(*sys.argv[1:])
