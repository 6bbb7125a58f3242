"""CLIP's tokenizer, as a folder has it: a byte-pair encoding that ends words with "</w>", on lower case.

A folder holds tokenizer.json (written by transformers 5) or vocab.json and merges.txt (by those before), both of one
vocabulary; and tokenizer_config.json, which says how many tokens a text has. Source: Radford et al. 2021
(arXiv:2103.00020), section 2.4. Nothing is unescaped, as in transformers: a text with "&amp;" has these characters.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.host.storage import naming
from ddpm_jax.trained import Tokens

FILES = ("tokenizer.json", "vocab.json", "merges.txt")
OTHERS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""What becomes tokens by itself: endings of English, letters, a digit, other signs."""


@dataclass(frozen=True)
class ClipTokenizer:
    """Texts as START, their tokens, END and padding, num_positions in all; the files are read when they are needed.

    Attributes:
      folder: of the files.
      num_positions: that the text encoder has, the most that a text can be.
    """

    folder: Path
    num_positions: int

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """int32 [n, L], and for each text how many of its tokens did not fit; L is model_max_length of the folder.

        Raises:
          FileNotFoundError: the folder has no tokenizer.
          ValueError: a damaged file.
          ImportError: the package tokenizers is not installed.
        """
        length = min(int(self._settings.get("model_max_length", self.num_positions)), self.num_positions)
        ids = np.full((len(texts), length), self._id("pad_token", END), np.int32)
        cut = []
        for row, text in zip(ids, texts, strict=True):
            found = self._core.encode(text, add_special_tokens=False).ids
            kept = found[: length - 2]
            whole = [self._id("bos_token", START), *kept, self._id("eos_token", END)]
            row[: len(whole)] = whole
            cut.append(len(found) - len(kept))
        return Tokens(ids, tuple(cut))

    def copy(self, folder: Path) -> None:
        """Its files in another folder; where transformers 5 has written them, those that 4 wants besides.

        Raises:
          FileNotFoundError: as when it is called.
          ValueError: a tokenizer.json that is no byte-pair encoding.
        """
        if not any((self.folder / name).is_file() for name in FILES):
            raise FileNotFoundError(f"no tokenizer in {self.folder} ({FILES[0]}, or {FILES[1]} and {FILES[2]})")
        for name in (*FILES, *OTHERS):
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, folder / name)
        if not all((folder / name).is_file() for name in FILES[1:]):
            model = _json(folder / FILES[0]).get("model", {})
            if not {"vocab", "merges"} <= set(model):
                raise ValueError(f"{self.folder / FILES[0]} is no byte-pair encoding")
            pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
            (folder / FILES[1]).write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
            (folder / FILES[2]).write_text("\n".join(["#version: 0.2", *pairs]) + "\n", encoding="utf-8")

    @cached_property
    def _settings(self) -> Mapping[str, Any]:
        path = self.folder / "tokenizer_config.json"
        return _json(path) if path.is_file() else {}

    @cached_property
    def _core(self) -> Any:
        try:
            import tokenizers
        except ImportError as error:
            raise ImportError('prompts need the package tokenizers: pip install "ddpm-jax[text]"') from error
        if not any((self.folder / name).is_file() for name in FILES):
            raise FileNotFoundError(f"no tokenizer in {self.folder} ({FILES[0]}, or {FILES[1]} and {FILES[2]})")
        try:
            if (path := self.folder / FILES[0]).is_file():
                core = tokenizers.Tokenizer.from_file(str(path))
                core.no_truncation()
                core.no_padding()
                return core
            return _byte_pairs(_json(self.folder / FILES[1]), _merges(self.folder / FILES[2]))
        except ValueError:
            raise
        except Exception as error:  # the package raises nothing narrower
            raise ValueError(f"{self.folder} holds no tokenizer that can be read: {error}") from None

    def _id(self, role: str, default: str) -> int:
        token = self._settings.get(role, default)
        token = token["content"] if isinstance(token, Mapping) else token
        if (found := self._core.token_to_id(token)) is None:
            raise ValueError(f"{self.folder}: the vocabulary has no {token!r}, which is its {role}")
        return found


def _byte_pairs(vocabulary: Mapping[str, int], merges: list[tuple[str, str]]) -> Any:
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers

    options = {"continuing_subword_prefix": "", "end_of_word_suffix": "</w>", "fuse_unk": False, "unk_token": END}
    core = tokenizers.Tokenizer(models.BPE(vocab=dict(vocabulary), merges=merges, **options))
    blanks = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
    core.normalizer = normalizers.Sequence([normalizers.NFC(), blanks, normalizers.Lowercase()])
    words = pre_tokenizers.Split(tokenizers.Regex(WORDS), behavior="removed", invert=True)
    core.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    core.add_special_tokens([token for token in (START, END) if token in vocabulary])
    return core


def _merges(path: Path) -> list[tuple[str, str]]:
    with naming(path):
        lines = path.read_text(encoding="utf-8").splitlines()
    pairs = [line.split() for line in lines if line and not line.startswith("#version")]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"{path} has a line that is not two symbols")
    return [(first, second) for first, second in pairs]


def _json(path: Path) -> dict[str, Any]:
    try:
        with naming(path):
            found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a mapping, got {type(found).__name__}")
    return found
