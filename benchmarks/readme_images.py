"""The pictures of the README, made by running the program.

    python benchmarks/readme_images.py            # needs Chromium and `pip install '.[dev]'`

`terminal.svg` is what `generate --show` prints in a terminal. `page.png` is the live page after a question,
in Chromium. `ttft.png` is `bench --plot` for random weights of the 0.5B's size.
"""

from __future__ import annotations

import io
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
COMMAND = [sys.executable, "-m", "fastvlm_mlx"]
PICTURES = "examples/pictures"
SHOWN = ["generate", f"{PICTURES}/shapes.png", "-m", "tiny", "--show", "-p", "Describe the picture."]
WATCHED = ROOT / PICTURES / "chart.png"
BROWSERS = ("chromium", "google-chrome", "chromium-browser")
COLUMNS = 90


def in_terminal(arguments: list[str]) -> str:
    """What a command writes to a terminal with 24-bit color."""
    environment = os.environ | {"COLORTERM": "truecolor", "TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
    screen, terminal = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdin=terminal, stdout=terminal, stderr=terminal, cwd=ROOT, env=environment
    )
    os.close(terminal)
    written = b""
    while select.select([screen], [], [], 120)[0]:
        try:
            piece = os.read(screen, 65536)
        except OSError:  # Linux reports the end of a terminal so
            break
        if not piece:
            break
        written += piece
    os.close(screen)
    if process.wait():
        raise SystemExit(written.decode())
    return written.decode().replace("\r\n", "\n")


def terminal_svg() -> None:
    typed = " ".join(f'"{word}"' if " " in word else word for word in SHOWN)
    written = re.sub(r"\r\x1b\[K", "", in_terminal(SHOWN))
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ fastvlm-mlx {typed}", style="bold"))
    console.print(Text.from_ansi(written))
    (IMAGES / "terminal.svg").write_text(console.export_svg(title="fastvlm-mlx"), encoding="utf-8")


def page_png() -> None:
    from playwright.sync_api import expect, sync_playwright

    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        raise SystemExit("no Chromium or Chrome here; on Debian, run apt-get install chromium")
    server = subprocess.Popen(
        [*COMMAND, "serve", "--port", "0"], cwd=ROOT, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        assert server.stderr is not None
        address = next(found[0] for line in server.stderr if (found := re.search(r"http://\S+", line)))
        with sync_playwright() as playwright:
            chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
            page = chromium.new_page(viewport={"width": 1280, "height": 800})
            page.goto(address)
            page.set_input_files("#file", str(WATCHED))
            page.fill("#prompt", "Describe the picture.")
            page.get_by_role("button", name="Ask").click()
            expect(page.locator("#speed")).to_have_text(re.compile(r"\d"), timeout=30_000)
            page.screenshot(path=IMAGES / "page.png")
            chromium.close()
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def ttft_png() -> None:
    sizes = ["--random", "0.5b", "--sizes", "256,512", "--runs", "3", "--plot", str(IMAGES / "ttft.png")]
    subprocess.run([*COMMAND, "bench", *sizes], cwd=ROOT, check=True)


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    terminal_svg()
    page_png()
    ttft_png()


if __name__ == "__main__":
    main()
