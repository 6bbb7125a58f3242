"""The tokenizers of text encoders, as a folder has them: CLIP's byte pairs, BERT's pieces of words.

A folder holds tokenizer.json (written by transformers 5) or the files of a vocabulary (by those before), both of one
vocabulary; and tokenizer_config.json, which says how many tokens a text has. Sources: Radford et al. 2021
(arXiv:2103.00020), section 2.4, for byte pairs that end words with "</w>", on lower case; Devlin et al. 2018
(arXiv:1810.04805), section 3, for WordPiece, the longest piece first. Nothing is unescaped, as in transformers: a text
with "&amp;" has these characters.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ddpm_jax.host.storage import naming
from ddpm_jax.samplers.configs.reading import read_json
from ddpm_jax.trained import Tokens

WHOLE = "tokenizer.json"
OTHERS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
START, END = "<|startoftext|>", "<|endoftext|>"
LEAST = 3
"""A start, a token and an end."""
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""What becomes tokens by itself: endings of English, letters, a digit, other signs."""
LONGEST_WORD = 100
"""Characters of a word beyond which BERT's tokenizer knows none of its pieces."""


@dataclass(frozen=True)
class FolderTokenizer:
    """Texts as a start, their tokens, an end and padding; the files are read when they are needed.

    Attributes:
      folder: of the files.
      num_positions: that the text encoder has, the most that a text can be.
      num_tokens: of every text, whatever the folder says, where its pipeline has a length of its own; None for
        model_max_length of the folder.
    """

    folder: Path
    num_positions: int
    num_tokens: int | None = None

    vocabulary_files: ClassVar[tuple[str, ...]]
    """What a folder has where it has no tokenizer.json."""
    roles: ClassVar[Mapping[str, str]]
    """Special tokens by default: the first three are start, end and padding."""
    optional: ClassVar[frozenset[str]] = frozenset()
    """Roles that a vocabulary may have no token for."""

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """int32 [n, L], and for each text how many of its tokens did not fit.

        Raises:
          FileNotFoundError: the folder has no tokenizer.
          ValueError: a damaged file.
          ImportError: the package tokenizers is not installed.
        """
        length = self._length if self.num_tokens is None else self.num_tokens
        start, end, padding = [self._id(role) for role in self.roles if role not in self.optional][:3]
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
        """Raises FileNotFoundError: no tokenizer; ValueError: one that fills or cuts texts on the left."""
        if not (self._has(WHOLE) or all(map(self._has, self.vocabulary_files))):
            raise FileNotFoundError(
                f"no tokenizer in {self.folder} ({WHOLE}, or {' and '.join(self.vocabulary_files)})"
            )
        for name in ("padding_side", "truncation_side"):
            if (side := self._settings.get(name, "right")) != "right":
                raise ValueError(f"{self.folder}: {name} must be 'right', got {side!r}")

    def copy(self, folder: Path) -> None:
        """Its files in another folder; where transformers 5 has written them, those that 4 wants besides.

        Raises:
          FileNotFoundError: as when it is called.
          ValueError: a tokenizer.json that is of another kind.
        """
        self.check_there()
        for name in filter(self._has, (WHOLE, *self.vocabulary_files, *OTHERS)):
            shutil.copyfile(self.folder / name, folder / name)
        if not all((folder / name).is_file() for name in self.vocabulary_files):
            model = read_json(self.folder / WHOLE).get("model", {})
            for name, content in self._vocabulary_of(model).items():
                (folder / name).write_text(content, encoding="utf-8")

    def _vocabulary_of(self, model: Mapping[str, Any]) -> dict[str, str]:
        """The vocabulary's files, by name, from the model in a tokenizer.json."""
        raise NotImplementedError

    def _from_vocabulary(self) -> Any:
        """The tokenizer of the vocabulary's files, without the tokens that were added to it."""
        raise NotImplementedError

    def _as_settings_say(self, core: Any) -> Any:
        """The tokenizer of a tokenizer.json, with what settings beside it change."""
        return core

    def _has(self, name: str) -> bool:
        return (self.folder / name).is_file()

    @cached_property
    def _settings(self) -> dict[str, Any]:
        """What a special token is: special_tokens_map.json says it where tokenizer_config.json is of before
        added_tokens_decoder, as in Stable Diffusion 2, whose padding is "!"."""
        said, of_special = (self._read(name) for name in OTHERS[:2])
        found = said if "added_tokens_decoder" in said else said | of_special
        return {name: value for name, value in found.items() if value is not None}

    def _read(self, name: str) -> dict[str, Any]:
        return read_json(self.folder / name) if self._has(name) else {}

    @property
    def _length(self) -> int:
        value = self._settings.get("model_max_length", self.num_positions)
        if not isinstance(value, int | float) or not value >= LEAST:
            raise ValueError(f"{self.folder}: model_max_length must be at least {LEAST}, got {value!r}")
        return int(min(value, self.num_positions))

    def _token(self, role: str) -> str:
        token = self._settings.get(role, self.roles[role])
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
            if self._has(WHOLE):
                core = tokenizers.Tokenizer.from_file(str(self.folder / WHOLE))
                core.no_truncation()
                core.no_padding()
                return self._as_settings_say(core)
            core = self._from_vocabulary()
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
        token = self._token(role)
        if (found := self._core.token_to_id(token)) is None:
            raise ValueError(f"{self.folder}: the vocabulary has no {token!r}, which is its {role}")
        return found

    def _add_special(self, core: Any, vocabulary: Mapping[str, int]) -> Any:
        """Special tokens are found in texts before anything is split."""
        special = dict.fromkeys(map(self._token, self.roles))
        core.add_special_tokens([token for token in special if token in vocabulary])
        return core


class ClipTokenizer(FolderTokenizer):
    """START, the byte pairs of the text's words, END, and END or another token as padding."""

    vocabulary_files = ("vocab.json", "merges.txt")
    roles: ClassVar[Mapping[str, str]] = {"bos_token": START, "eos_token": END, "pad_token": END}

    def _vocabulary_of(self, model: Mapping[str, Any]) -> dict[str, str]:
        if not {"vocab", "merges"} <= set(model):
            raise ValueError(f"{self.folder / WHOLE} is no byte-pair encoding")
        pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        contents = json.dumps(model["vocab"], ensure_ascii=False), "\n".join(["#version: 0.2", *pairs]) + "\n"
        return dict(zip(self.vocabulary_files, contents, strict=True))

    def _from_vocabulary(self) -> Any:
        import tokenizers
        from tokenizers import models, normalizers, pre_tokenizers

        vocabulary, merges = (self.folder / name for name in self.vocabulary_files)
        options = {"continuing_subword_prefix": "", "end_of_word_suffix": "</w>", "fuse_unk": False, "unk_token": END}
        found = read_json(vocabulary)
        core = tokenizers.Tokenizer(models.BPE(vocab=found, merges=_merges(merges), **options))
        blanks = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
        core.normalizer = normalizers.Sequence([normalizers.NFC(), blanks, normalizers.Lowercase()])
        words = pre_tokenizers.Split(tokenizers.Regex(WORDS), behavior="removed", invert=True)
        core.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        return self._add_special(core, found)


class BertTokenizer(FolderTokenizer):
    """[CLS], the pieces of the text's words, [SEP], and [PAD]; a word that has none is [UNK].

    Words are cleaned, in lower case and without accents, as do_lower_case, strip_accents and tokenize_chinese_chars of
    tokenizer_config.json say, whatever tokenizer.json does.
    """

    vocabulary_files = ("vocab.txt",)
    roles: ClassVar[Mapping[str, str]] = {
        **{"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"},
        "mask_token": "[MASK]",
    }
    optional = frozenset(("mask_token",))
    REFUSED: ClassVar[Mapping[str, Any]] = {"do_basic_tokenize": True, "never_split": []}
    """Settings with the only value that is read here."""

    def _vocabulary_of(self, model: Mapping[str, Any]) -> dict[str, str]:
        vocabulary = model.get("vocab")
        if model.get("type") != "WordPiece" or not isinstance(vocabulary, Mapping):
            raise ValueError(f"{self.folder / WHOLE} is no WordPiece vocabulary")
        tokens = {number: token for token, number in vocabulary.items() if isinstance(number, int)}
        if sorted(tokens) != list(range(len(vocabulary))):
            raise ValueError(f"{self.folder / WHOLE}: tokens must be numbered 0, 1, 2, ...")
        return {self.vocabulary_files[0]: "".join(f"{tokens[i]}\n" for i in range(len(tokens)))}

    def _from_vocabulary(self) -> Any:
        import tokenizers
        from tokenizers import models, pre_tokenizers

        path = self.folder / self.vocabulary_files[0]
        with naming(path):
            lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        vocabulary = {token: number for number, token in enumerate(lines)}
        if len(vocabulary) != len(lines):
            raise ValueError(f"{path} has a token twice")
        options = {"unk_token": self._token("unk_token"), "max_input_chars_per_word": LONGEST_WORD}
        core = tokenizers.Tokenizer(models.WordPiece(vocab=vocabulary, **options))
        core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        return self._as_settings_say(self._add_special(core, vocabulary))

    def _as_settings_say(self, core: Any) -> Any:
        from tokenizers import normalizers

        said = self._settings
        for name, value in self.REFUSED.items():
            if said.get(name, value) != value:
                raise ValueError(f"{self.folder}: {name} must be {value!r}, got {said[name]!r}")
        flags = {"do_lower_case": True, "tokenize_chinese_chars": True, "strip_accents": None}
        found = {name: said.get(name, default) for name, default in flags.items()}
        for name, value in found.items():
            if not isinstance(value, bool) and value != flags[name]:
                raise ValueError(f"{self.folder}: {name} must be true or false, got {value!r}")
        core.normalizer = normalizers.BertNormalizer(
            clean_text=True,
            lowercase=found["do_lower_case"],
            handle_chinese_chars=found["tokenize_chinese_chars"],
            strip_accents=found["strip_accents"],
        )
        return core


def _merges(path: Path) -> list[tuple[str, str]]:
    with naming(path):
        lines = path.read_text(encoding="utf-8").splitlines()
    pairs = [line.split() for line in lines if line and not line.startswith("#version")]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"{path} has a line that is not two symbols")
    return [(first, second) for first, second in pairs]
