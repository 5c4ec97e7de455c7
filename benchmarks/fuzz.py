"""Ten thousand hostile requests: the service must not fail, hang or grow.

    python benchmarks/fuzz.py --model runs/clip_style/model

Half of them are made by schemathesis from the service's own OpenAPI description: values that fit it and values that do
not, in every field, header and path. The other half is made here: images that are cut short, overwritten, enormous
when unfolded or no images at all, filters of random tokens and of great depth, cursors with changed letters, forged
numbers or nested lists in them, forms in odd encodings, JSON that unfolds and comes without a token, bodies that are
not what their header says. An answer of 500 or above, or one that takes more than `--longest` seconds, is a
finding; so is a service that does not answer afterwards, or whose memory grew by a fifth over the second half.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import random
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import schemathesis
from common import save_results
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.errors import SchemathesisError
from service import Service, serving

from dualtower import DualTower, load_card, load_items
from dualtower.search.ingest.embed import index_products, open_or_create

TOKEN = "a token for this benchmark alone"
WRITER = {"authorization": f"Bearer {TOKEN}"}

CHARSETS = ["punycode", "idna", "utf-7", "utf-16", "zlib", "unicode_escape", "utf-8", "nonsense"]
NUMBERS = [float("nan"), float("inf"), 1e300, -1e300, 3e38, 0.0]


class Findings:
    """What the service answered.

    Args:
        client: Asks it.
        longest: Seconds that an answer may take.
    """

    def __init__(self, client: httpx.Client, longest: float) -> None:
        self.client, self.longest = client, longest
        self.statuses: Counter[int] = Counter()
        self.slowest, self.wrong = 0.0, list[str]()

    def ask(self, method: str, url: str, **given) -> httpx.Response | None:
        """Send one request and judge the answer."""
        begin = time.perf_counter()
        try:
            answer = self.client.request(method, url, **given)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            if isinstance(error, httpx.TimeoutException):
                self.wrong.append(f"{method} {url[:80]}: no answer")
            return None  # the server may close a connection that it cannot make sense of
        seconds = time.perf_counter() - begin
        self.statuses[answer.status_code] += 1
        self.slowest = max(self.slowest, seconds)
        if answer.status_code >= 500 or seconds > self.longest:
            self.wrong.append(f"{method} {url[:80]}: {answer.status_code} after {seconds:.1f} s")
            print(self.wrong[-1], file=sys.stderr, flush=True)
        return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--model", required=True, help="folder of a model of the synthetic catalog")
    parser.add_argument("--longest", type=float, default=10.0, help="seconds that an answer may take")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shop, token = make_shop(Path(folder), args.model), Path(folder) / "token"
        token.write_text(TOKEN)
        with serving(shop, token_file=token) as service:
            url = f"http://127.0.0.1:{service.port}"
            found = Findings(httpx.Client(base_url=url, timeout=3 * args.longest), args.longest)
            memory = [service.memory()]
            for part in range(4):
                by_hand(found, args.requests // 8, seed=part)
                by_schema(found, url, args.requests // 8, seed=part)
                memory.append(service.memory())
                asked = sum(found.statuses.values())
                print(f"{asked:,} answers, {memory[-1]:.0f} MiB", file=sys.stderr, flush=True)
            judge(found, service, memory)
    statuses = [[str(status), f"{count:,}"] for status, count in sorted(found.statuses.items())]
    save_results(
        "fuzz",
        title=f"{sum(found.statuses.values()):,} hostile requests: {len(found.wrong)} findings, "
        f"slowest answer {found.slowest:.1f} s",
        tables=[(["status", "answers"], statuses)],
        values={"statuses": dict(found.statuses), "wrong": found.wrong, "mib": memory, "slowest_s": found.slowest},
    )
    if found.wrong:
        sys.exit("\n".join(found.wrong))


def make_shop(folder: Path, model_folder: str) -> Path:
    """A catalog of some synthetic products."""
    model, items = DualTower.from_pretrained(model_folder), load_items(load_card("synthetic"), "test")
    kinds = dict.fromkeys(items.attributes, "text")
    store = open_or_create(folder / "shop", model, name=model_folder, attributes=kinds, card="synthetic")
    index_products(store, model, items)
    store.close()
    return folder / "shop"


def judge(found: Findings, service: Service, memory: list[float]) -> None:
    """Is it alive, does it still search, and did it grow?"""
    answer = found.ask("POST", "/search", json={"text": "mug"})
    if answer is None or answer.status_code != 200 or service.process.poll() is not None:
        found.wrong.append("the service does not search any more")
    if memory[-1] > 1.2 * memory[len(memory) // 2]:
        found.wrong.append(f"memory grew: {', '.join(f'{m:.0f}' for m in memory)} MiB")


def by_schema(found: Findings, url: str, number: int, *, seed: int) -> None:
    """Requests that schemathesis derives from the description, for every operation alike."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    each = max(1, number // (2 * len(operations)))
    quiet = settings(
        max_examples=each,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    for operation in operations:
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            try:
                cases = operation.as_strategy(generation_mode=mode)

                @quiet
                @given(case=cases)
                def send(case) -> None:
                    sent = case.as_transport_kwargs(base_url=url)
                    given_ = {k: v for k, v in sent.items() if k in ("params", "json", "data", "files", "content")}
                    if isinstance(given_.get("data"), bytes):
                        given_["content"] = given_.pop("data")
                    if given_.get("files"):
                        given_["files"] = as_parts(given_["files"])
                    headers = {k: v for k, v in sent["headers"].items() if v.isascii() and v.isprintable()}
                    found.ask(sent["method"], sent["url"], headers={**WRITER, **headers}, **given_)

                send()
            except (SchemathesisError, Unsatisfiable):  # an operation without anything that could be wrong
                continue


def as_parts(files) -> list[tuple[str, tuple]]:
    """Parts of a form that httpx can send, whatever was made up as their content."""
    parts = []
    for name, part in files.items() if isinstance(files, dict) else files:
        filename, content, *more = part if isinstance(part, tuple) else (None, part)
        parts.append((name, (filename, content if isinstance(content, bytes | str) else str(content), *more)))
    return parts


def by_hand(found: Findings, number: int, *, seed: int) -> None:
    """Requests that only somebody who knows the service would think of."""
    dice = random.Random(seed)
    cursor = found.ask("POST", "/search", json={"text": "mug", "limit": 2}).json()["cursor"]
    for kind, sent in hostile(dice, cursor, number):
        if kind == "form":
            found.ask("POST", "/search", files={"image": ("a.jpg", sent)}, data={"text": "mug"})
        elif kind == "put":
            item = {"id": dice.choice(["../x", "a" * 400, "\x00", "r/1?x"]), "image": base64.b64encode(sent).decode()}
            found.ask("PUT", "/items", json=[item], headers=WRITER)
        elif kind == "body":
            found.ask("POST", "/search", content=sent, headers={"content-type": "application/json"})
        elif kind == "path":
            found.ask(dice.choice(["GET", "HEAD"]), sent)
        elif kind == "no token":
            found.ask("PUT", "/items", content=sent, headers={"content-type": "application/json"})
        elif kind == "charset":
            body = b'--b\r\ncontent-disposition: form-data; name="text"\r\n\r\n' + sent[1] + b"\r\n--b--\r\n"
            kind = f"multipart/form-data; boundary=b; charset={sent[0]}"
            found.ask("POST", "/search", content=body, headers={"content-type": kind})
        else:
            found.ask("POST", "/search", json={"text": "mug", **sent})


def hostile(dice: random.Random, cursor: str, number: int) -> Iterator[tuple[str, object]]:
    """Kind of request, and what it carries."""
    words = ["color", "=", "!=", "<", "(", ")", "and", "or", "not", "in", ",", "'", "'mug'", "1e999", ";", "--"]
    for _ in range(number):
        match dice.randrange(10):
            case 0:
                yield "form", hostile_image(dice)
            case 1:
                yield "put", hostile_image(dice)
            case 2:
                deep = dice.choice(["(", "not ", "object = 'a' and "]) * dice.randrange(2000)
                yield "json", {"where": deep if dice.random() < 0.3 else " ".join(dice.choices(words, k=12))}
            case 3:
                place, letter = dice.randrange(len(cursor)), chr(dice.randrange(33, 127))
                changed = cursor[:place] + letter + cursor[place + dice.randrange(3) :]
                yield "json", {"cursor": changed, "limit": 2}
            case 4:
                body = json.dumps({"text": "mug", "image": "A" * dice.randrange(100)}).encode()
                yield "body", body[: dice.randrange(len(body))] + dice.randbytes(dice.randrange(30))
            case 5:
                nested = dice.choice([b"[" * 14_000, b"[[],[" * 3000, b'{"a":' * 2000, dice.randbytes(2000)])
                yield "json", {"cursor": base64.urlsafe_b64encode(nested).decode()}
            case 6:
                forged = base64.urlsafe_b64decode(cursor)
                at = dice.choice([len(forged) - 32, dice.randrange(len(forged) - 8)])
                forged = forged[:at] + struct.pack("<d", dice.choice(NUMBERS)) + forged[at + 8 :]
                yield "json", {"cursor": base64.urlsafe_b64encode(forged).decode(), "limit": 2}
            case 7:
                yield "no token", dice.choice([b"[" * 100_000, b"[" + b"[]," * 100_000, b'[{"id": "' + b"a" * 100_000])
            case 8:
                yield "charset", (dice.choice(CHARSETS), dice.randbytes(dice.randrange(500)))
            case _:
                name = dice.choice(
                    ["../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "%00", "r1/similar?where=(((", "'", "a%2Fwhy"]
                )
                yield "path", dice.choice(["/items/", "/page/", "/"]) + name


def hostile_image(dice: random.Random) -> bytes:
    """Bytes that claim to be an image."""
    kind = dice.choice(["JPEG", "PNG", "WEBP", "GIF"])
    Image.effect_noise((60, 80), 50).convert("RGB").save(buffer := io.BytesIO(), kind)
    content = bytearray(buffer.getvalue())
    match dice.randrange(6):
        case 5:  # real pixels, in a few kilobytes
            Image.new(dice.choice(["RGB", "RGBA", "P", "1", "L"]), (2000, 2000)).save(unfolds := io.BytesIO(), "PNG")
            return unfolds.getvalue()
        case 0:
            return bytes(content[: dice.randrange(len(content))])
        case 1:
            for _ in range(20):
                content[dice.randrange(len(content))] = dice.randrange(256)
            return bytes(content)
        case 2:
            return bomb(dice.choice([10_000, 60_000, 2**31 - 1]))
        case 3:
            return dice.randbytes(dice.randrange(2000))
        case _:
            return b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"


def bomb(side: int) -> bytes:
    """A PNG of a few bytes that says it is enormous."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(10**6))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


if __name__ == "__main__":
    main()
