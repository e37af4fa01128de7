"""The profile `ai` built for real, and the model of `embed` run in it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sysconfig
from pathlib import Path

import pytest
from node import PROJECT, command

import faas
from faas.environments.profile import load_profile, shipped_functions, shipped_runtimes
from faas.model import Environment

pytestmark = [pytest.mark.torch, pytest.mark.timeout(900)]

# Published for this model, to four digits, in the documentation of sentence-transformers.
WEATHER = ("The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium.")
COSINES = (0.6660, 0.1046, 0.1411)

EMBED = """
import json, sys
sys.path[:0] = sys.argv[1:]
import faas, msgspec, handler
embed, context = handler.Embed(), faas.Context(function="embed", tenant="default")
embed.load(context)
for line in sys.stdin:
    print(msgspec.json.encode(embed.handle(msgspec.json.decode(line, type=handler.Request), context)).decode())
"""


async def run_python(environment: Environment, *arguments: str, text: str = "") -> str:
    """What a Python of the environment prints; warnings are errors there too."""
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return await asyncio.to_thread(
        subprocess.check_output,
        [environment.python, "-I", "-B", "-W", "error", "-c", *arguments],
        input=text,
        text=True,
        env=os.environ | one_thread,
    )


async def embed(environment: Environment, *requests: object) -> list[list[list[float]]]:
    """The vectors of each request, as the function's handler answers it."""
    lines = "".join(json.dumps({"text": request}) + "\n" for request in requests)
    output = await run_python(environment, EMBED, str(shipped_functions() / "embed"), str(PROJECT), text=lines)
    answers = [json.loads(line) for line in output.splitlines()]
    assert {answer["dimensions"] for answer in answers} == {384}
    return [answer["vectors"] for answer in answers]


def dot(one: list[float], other: list[float]) -> float:
    return sum(x * y for x, y in zip(one, other, strict=True))


async def test_vectors_have_384_dimensions_and_length_1(ai: Environment) -> None:
    """A dot product is then a cosine, which is what indexes of vectors expect."""
    ((vector,),) = await embed(ai, "hello")

    assert len(vector) == 384
    assert dot(vector, vector) == pytest.approx(1.0, abs=1e-5)


async def test_similar_texts_are_closer_than_unrelated_ones(ai: Environment) -> None:
    """It is the real model: its cosines are the published ones."""
    ((one, two, three),) = await embed(ai, WEATHER)

    cosines = (dot(one, two), dot(one, three), dot(two, three))
    assert cosines == pytest.approx(COSINES, abs=1e-3)
    assert cosines[0] > max(cosines[1:])


async def test_a_text_has_the_same_vector_whatever_it_is_embedded_with(ai: Environment) -> None:
    """Padding to the longest of a batch must not reach the result."""
    ((alone,), together) = await embed(ai, WEATHER[2], [WEATHER[2], "a much longer text " * 40, *["x"] * 60])

    assert together[0] == pytest.approx(alone, abs=1e-5)


async def test_a_text_above_the_models_length_is_cut(ai: Environment) -> None:
    """The model has 512 positions; a longer text would be an index error in the middle of a batch."""
    ((vector,), (same,)) = await embed(ai, "word " * 5000, "word " * 20_000)

    assert vector == pytest.approx(same, abs=1e-5)


async def test_the_preload_leaves_one_thread(ai: Environment) -> None:
    """A zygote forks, and a fork copies only the thread that forked."""
    profile = load_profile(shipped_runtimes() / "ai")
    statements = "".join(f"import {module}\n" for module in profile.preload)

    threads = await run_python(ai, f"{statements}{profile.warmup}\nimport os\nprint(len(os.listdir('/proc/self/task')))")

    assert threads.strip() == "1"


async def test_its_modules_are_compiled(ai: Environment) -> None:
    """`import torch` takes two to four times as long without."""
    torch = next(Path(ai.python).parent.parent.glob("lib/python*/site-packages/torch"))

    assert list(torch.glob("__pycache__/__init__.*.pyc"))


async def test_a_new_torch_function_passes_its_own_test(ai: Environment, tmp_path: Path) -> None:
    """What `faas new --template torch` makes is skipped without torch; here it has it."""
    code, _, err = await command("new", "sine", "--template", "torch", "--functions", str(tmp_path))
    assert (code, err) == (0, "")

    packages = os.pathsep.join([str(Path(faas.__file__).parents[1]), sysconfig.get_path("purelib")])  # for pytest, and `import faas`
    done = await asyncio.to_thread(
        subprocess.run,
        [ai.python, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio", "--rootdir", ".", "."],
        cwd=tmp_path / "sine",
        env=os.environ | {"PYTHONPATH": packages},
        capture_output=True,
        text=True,
        check=False,
    )

    assert "4 passed" in done.stdout, done.stdout + done.stderr
