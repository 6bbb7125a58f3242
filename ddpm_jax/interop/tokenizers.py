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
from ddpm_jax.samplers.configs.reading import read_json
from ddpm_jax.trained import Tokens

FILES = ("tokenizer.json", "vocab.json", "merges.txt")
OTHERS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
START, END = "<|startoftext|>", "<|endoftext|>"
ROLES = {"bos_token": START, "eos_token": END, "pad_token": END}
"""Special tokens, by default."""
LEAST = 3
"""A start, a token and an end."""
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
        length = min(self._length, self.num_positions)
        start, end, padding = (self._id(role) for role in ROLES)
        ids = np.full((len(texts), length), padding, np.int32)
        cut = []
        for row, text in zip(ids, texts, strict=True):
            found = self._core.encode(text, add_special_tokens=False).ids
            kept = found[: length - 2]
            whole = [start, *kept, end]
            row[: len(whole)] = whole
            cut.append(len(found) - len(kept))
        return Tokens(ids, tuple(cut))

    def check_there(self) -> None:
        """Raises FileNotFoundError: the folder has no tokenizer."""
        there = [(self.folder / name).is_file() for name in FILES]
        if not (there[0] or all(there[1:])):
            raise FileNotFoundError(f"no tokenizer in {self.folder} ({FILES[0]}, or {FILES[1]} and {FILES[2]})")

    def copy(self, folder: Path) -> None:
        """Its files in another folder; where transformers 5 has written them, those that 4 wants besides.

        Raises:
          FileNotFoundError: as when it is called.
          ValueError: a tokenizer.json that is no byte-pair encoding.
        """
        self.check_there()
        for name in (*FILES, *OTHERS):
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, folder / name)
        if not all((folder / name).is_file() for name in FILES[1:]):
            model = read_json(folder / FILES[0]).get("model", {})
            if not {"vocab", "merges"} <= set(model):
                raise ValueError(f"{self.folder / FILES[0]} is no byte-pair encoding")
            pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
            (folder / FILES[1]).write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
            (folder / FILES[2]).write_text("\n".join(["#version: 0.2", *pairs]) + "\n", encoding="utf-8")

    @cached_property
    def _settings(self) -> dict[str, Any]:
        """What a special token is: special_tokens_map.json says it where tokenizer_config.json is of before
        added_tokens_decoder, as in Stable Diffusion 2, whose padding is "!"."""
        said, of_special = (self._read(name) for name in OTHERS[:2])
        found = said if "added_tokens_decoder" in said else said | of_special
        return {name: value for name, value in found.items() if value is not None}

    def _read(self, name: str) -> dict[str, Any]:
        return read_json(self.folder / name) if (self.folder / name).is_file() else {}

    @property
    def _length(self) -> int:
        value = self._settings.get("model_max_length", self.num_positions)
        if not isinstance(value, int | float) or not value >= LEAST:
            raise ValueError(f"{self.folder}: model_max_length must be at least {LEAST}, got {value!r}")
        return int(min(value, self.num_positions))

    def _token(self, role: str, default: str) -> str:
        token = self._settings.get(role, default)
        token = token.get("content") if isinstance(token, Mapping) else token
        if not isinstance(token, str):
            raise ValueError(f"{self.folder}: {role} must be a text, got {token!r}")
        return token

    @property
    def _added(self) -> dict[int, str]:
        """Tokens that were added to the vocabulary, such as those of textual inversion, by their numbers."""
        found = {number: token for token, number in self._read(OTHERS[2]).items()}
        for number, token in self._settings.get("added_tokens_decoder", {}).items():
            found[int(number)] = token["content"] if isinstance(token, Mapping) else token
        return dict(sorted(found.items()))

    @cached_property
    def _core(self) -> Any:
        try:
            import tokenizers
        except ImportError as error:
            raise ImportError('prompts need the package tokenizers: pip install "ddpm-jax[text]"') from error
        self.check_there()
        try:
            if (path := self.folder / FILES[0]).is_file():
                core = tokenizers.Tokenizer.from_file(str(path))
                core.no_truncation()
                core.no_padding()
                return core
            special = [self._token(role, default) for role, default in ROLES.items()]
            core = _byte_pairs(read_json(self.folder / FILES[1]), _merges(self.folder / FILES[2]), special)
            for number, token in self._added.items():
                core.add_tokens([token])
                if core.token_to_id(token) != number:
                    raise ValueError(f"{self.folder}: the added token {token!r} has the number {number} of another")
            return core
        except ValueError:
            raise
        except Exception as error:  # the package raises nothing narrower
            raise ValueError(f"{self.folder} holds no tokenizer that can be read: {error}") from None

    def _id(self, role: str) -> int:
        token = self._token(role, ROLES[role])
        if (found := self._core.token_to_id(token)) is None:
            raise ValueError(f"{self.folder}: the vocabulary has no {token!r}, which is its {role}")
        return found


def _byte_pairs(vocabulary: Mapping[str, int], merges: list[tuple[str, str]], special: Sequence[str]) -> Any:
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers

    options = {"continuing_subword_prefix": "", "end_of_word_suffix": "</w>", "fuse_unk": False, "unk_token": END}
    core = tokenizers.Tokenizer(models.BPE(vocab=dict(vocabulary), merges=merges, **options))
    blanks = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
    core.normalizer = normalizers.Sequence([normalizers.NFC(), blanks, normalizers.Lowercase()])
    words = pre_tokenizers.Split(tokenizers.Regex(WORDS), behavior="removed", invert=True)
    core.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    core.add_special_tokens([token for token in dict.fromkeys(special) if token in vocabulary])
    return core


def _merges(path: Path) -> list[tuple[str, str]]:
    with naming(path):
        lines = path.read_text(encoding="utf-8").splitlines()
    pairs = [line.split() for line in lines if line and not line.startswith("#version")]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"{path} has a line that is not two symbols")
    return [(first, second) for first, second in pairs]
