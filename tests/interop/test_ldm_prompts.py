"""Folders of LDMTextToImagePipeline: tokens, contexts, whole pipelines as recorded, prompts, and what is refused."""

import importlib.util
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from ddpm_jax import cli, guided, interop
from ddpm_jax.guided import Guidance
from ddpm_jax.interop.tokenizers import BertTokenizer
from ddpm_jax.samplers import from_diffusers_config
from tests.helpers import trace

pytestmark = pytest.mark.skipif(importlib.util.find_spec("tokenizers") is None, reason="tokenizers is not installed")
PROMPTS = ("a red cat on the blue photo", "the dog")


@pytest.fixture(scope="module")
def folder(shared_golden):
    return shared_golden / "uses" / "ldm_text2img_tiny"


@pytest.fixture(scope="module")
def recorded(shared_golden):
    with np.load(shared_golden / "uses" / "ldm_text2img.npz") as file:
        arrays = {name: file[name] for name in file.files}
    return arrays, json.loads(str(arrays.pop("meta")))


@pytest.fixture(scope="module")
def trained(folder):
    return interop.load(folder)


@pytest.fixture(scope="module")
def wordpiece(shared_golden):
    found = json.loads((shared_golden / "tokenizers" / "bert_wordpiece_small_vocab.json").read_text())
    return found["meta"]["vocab"], found["rows"]


def tokenizer_of(place, vocabulary, **settings):
    place.mkdir(exist_ok=True)
    (place / "vocab.txt").write_text("".join(f"{token}\n" for token in vocabulary), encoding="utf-8")
    (place / "tokenizer_config.json").write_text(json.dumps(settings))
    return BertTokenizer(place, 77, 77)


def edited(place, **changes):
    place.write_text(json.dumps(json.loads(place.read_text()) | changes))


def copy_of(folder, place):
    return shutil.copytree(folder, place, copy_function=shutil.copyfile)


def nhwc(array):
    return np.moveaxis(array, -3, -1)


# ------------------------------------------------------------------------------------------------------- as recorded


def test_tokens_and_contexts(trained, recorded):
    arrays, meta = recorded
    assert meta["prompts"] == [*PROMPTS]
    tokens = trained.text.tokens(PROMPTS)
    np.testing.assert_array_equal(tokens.ids, arrays["prompt_ids"])
    np.testing.assert_allclose(trained.text.contexts(tokens.ids), arrays["prompt_embeds"], atol=1e-5)


@pytest.mark.parametrize("key", ["c0", "c1"])
def test_a_pipeline_as_recorded(key, trained, recorded):
    """Latents at every step, and pictures; DDIM with noise at a scale of 6, and the pipeline's default: no guidance."""
    arrays, meta = recorded
    call = next(case["call"] for case in meta["cases"] if case["key"] == key)
    of = lambda name: jnp.asarray(nhwc(arrays[f"{key}.{name}"]))
    chosen = Guidance(call["guidance_scale"]) if "guidance_scale" in call else None
    options = {"eta": call["eta"]} if "eta" in call else {}
    config = {"_class_name": "DDIMScheduler", **meta["scheduler_config"]}
    preset = from_diffusers_config(config, call["num_inference_steps"], **options)
    contexts = lambda texts: jnp.asarray(trained.text.contexts(trained.text.tokens(texts).ids))
    told, otherwise = {"context": contexts(PROMPTS)}, {"context": contexts(("", ""))}
    denoise = guided.denoise_of(trained, chosen, guided.parameters(trained, chosen), told, preset.denoiser, otherwise)
    table = preset.table if chosen is None else chosen.on(preset.table, trained.schedule.num_timesteps)
    noise = of("step_noise") if f"{key}.step_noise" in arrays else [0 * of("noise0")] * preset.table.num_calls
    found = trace(denoise, table, of("noise0"), noise)
    expected = of("latents")
    assert len(found) == len(expected)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    decoded = np.clip(np.asarray(trained.first_stage.decode(found[-1])) / 2 + 0.5, 0, 1)
    np.testing.assert_allclose(decoded, arrays[f"{key}.images"], atol=1e-5)


def test_pieces_of_words_are_those_of_transformers(wordpiece, tmp_path):
    vocabulary, rows = wordpiece
    found = tokenizer_of(tmp_path / "tokenizer", vocabulary)([row["text"] for row in rows])
    assert found.ids.shape == (len(rows), 77)
    for row, ids, cut in zip(rows, found.ids, found.cut, strict=True):
        expected = row["ids"] + [0] * (77 - len(row["ids"]))
        assert (list(ids) == expected) and (cut > 0) <= (len(row["ids"]) == 77), row["text"]
    assert max(found.cut) > 0


# ------------------------------------------------------------------------------------------------------- of folders


def test_every_text_has_77_tokens(trained, folder, tmp_path):
    """Whatever the tokenizer says, as the pipeline calls it."""
    place = copy_of(folder, tmp_path / "ldm")
    edited(place / "tokenizer" / "tokenizer_config.json", model_max_length=12)
    tokens = interop.load(place).text.tokens
    np.testing.assert_array_equal(tokens(PROMPTS).ids, trained.text.tokens(PROMPTS).ids)
    assert tokens(["dog " * 75, "dog " * 80]).cut == (0, 5)


def test_the_published_form(trained, folder, wordpiece, tmp_path, capsys):
    """BERT's tokenizer, and another package in the index: read, written and read again."""
    place = copy_of(folder, tmp_path / "ldm")
    shutil.rmtree(place / "tokenizer")
    tokenizer_of(place / "tokenizer", wordpiece[0], do_lower_case=True, model_max_length=512)
    edited(place / "model_index.json", bert=["ldm.modeling_ldmbert", "LDMBertModel"])
    edited(place / "model_index.json", tokenizer=["transformers", "BertTokenizer"])
    before = interop.load(place)
    assert before.weights == trained.weights
    cli.main(["convert", str(place), str(tmp_path / "after")])
    assert '--prompt "..."' in capsys.readouterr().out
    after = interop.load(tmp_path / "after")
    assert after.weights == before.weights and after.text.model == before.text.model
    np.testing.assert_array_equal(after.text.tokens(PROMPTS).ids, before.text.tokens(PROMPTS).ids)
    ours, theirs = ((each / "tokenizer" / "vocab.txt").read_text() for each in (tmp_path / "after", place))
    assert ours == theirs
    assert json.loads((tmp_path / "after" / "model_index.json").read_text())["tokenizer"][1] == "BertTokenizer"


def test_convert_writes_the_pipeline(trained, folder, tmp_path, capsys):
    cli.main(["convert", str(folder), str(tmp_path / "after")])
    assert "without a text encoder" not in capsys.readouterr().out
    index, theirs = (json.loads((place / "model_index.json").read_text()) for place in (tmp_path / "after", folder))
    assert index == theirs
    after = interop.load(tmp_path / "after")
    assert after.weights == trained.weights and after.text.model == trained.text.model
    tokens = after.text.tokens(PROMPTS).ids
    np.testing.assert_array_equal(tokens, trained.text.tokens(PROMPTS).ids)
    np.testing.assert_array_equal(after.text.contexts(tokens), trained.text.contexts(tokens))
    ours, theirs = (load_file(place / "bert" / "model.safetensors") for place in (tmp_path / "after", folder))
    assert theirs.keys() - ours.keys() == {"to_logits.weight", "to_logits.bias"}
    jax.tree.map(np.testing.assert_array_equal, ours, {name: theirs[name] for name in ours})


def test_prompts_reach_the_pictures(folder, tmp_path):
    options = ["sample", str(folder), "--num-steps", "2", "-n", "2", "--guidance-scale", "6"]
    cli.main([*options, "--prompt", *PROMPTS, "--out", str(tmp_path / "a.npz")])
    cli.main([*options, "--prompt", PROMPTS[0], "--out", str(tmp_path / "b.npz")])
    a, b = (np.load(tmp_path / name)["images"].astype(int) for name in ("a.npz", "b.npz"))
    assert a.shape == (2, 16, 16, 3)
    assert abs(a[0] - b[0]).max() <= 1 < abs(a[1] - b[1]).max()


# ------------------------------------------------------------------------------------------------ pieces of words


def test_the_two_forms_of_a_vocabulary(wordpiece, tmp_path):
    """transformers 5 writes tokenizer.json alone; those before read vocab.txt, which `copy` adds."""
    vocabulary, rows = wordpiece
    old = tokenizer_of(tmp_path / "old", vocabulary)
    (tmp_path / "new").mkdir()
    old._core.save(str(tmp_path / "new" / "tokenizer.json"))
    new, texts = BertTokenizer(tmp_path / "new", 77), [row["text"] for row in rows]
    np.testing.assert_array_equal(new(texts).ids, old(texts).ids)
    (tmp_path / "copy").mkdir()
    new.copy(tmp_path / "copy")
    assert (tmp_path / "copy" / "vocab.txt").read_text() == (tmp_path / "old" / "vocab.txt").read_text()
    edited(tmp_path / "new" / "tokenizer.json", model={"type": "BPE", "vocab": {}, "merges": []})
    with pytest.raises(ValueError, match=r"new/tokenizer\.json is no WordPiece vocabulary"):
        new.copy(tmp_path)


def test_settings_of_pieces_have_their_effect(wordpiece, tmp_path):
    place, vocabulary = tmp_path / "tokenizer", [*wordpiece[0], "Cat", "cafés", "[X]"]
    number = {token: i for i, token in enumerate(vocabulary)}

    def first(text, **settings):
        return int(tokenizer_of(place, vocabulary, **settings)([text]).ids[0, 1])

    for whole in (False, True):  # also where tokenizer.json says otherwise
        assert first("Cat") == number["cat"] and first("Cat", do_lower_case=False) == number["Cat"]
        assert first("CAFÉS", strip_accents=False) == number["cafés"] and first("CAFÉ") == number["cafe"]
        assert first("北京") == number["北"]
        assert first("北京", tokenize_chinese_chars=False) == number["[UNK]"]
        assert int(tokenizer_of(place, vocabulary, cls_token="[X]")(["a"]).ids[0, 0]) == number["[X]"]
        assert first("[MASK]") == number["[MASK]"]
        if not whole:
            tokenizer_of(place, vocabulary)._core.save(str(place / "tokenizer.json"))
    (place / "tokenizer.json").unlink()
    assert first("Cat", mask_token="<none>") == number["cat"]  # no text needs one


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_basic_tokenize": False}, "do_basic_tokenize must be True, got False"),
        ({"never_split": ["a"]}, r"never_split must be \[\], got \['a'\]"),
        ({"do_lower_case": "no"}, "do_lower_case must be true or false, got 'no'"),
        ({"strip_accents": 3}, "strip_accents must be true or false, got 3"),
        ({"unk_token": "<none>"}, "the vocabulary has no '<none>', which is its unk_token"),
        ({"sep_token": 7}, "sep_token must be a text, got 7"),
    ],
)
def test_other_settings_of_pieces_are_refused(settings, message, wordpiece, tmp_path):
    with pytest.raises(ValueError, match=message):
        tokenizer_of(tmp_path / "tokenizer", wordpiece[0], **settings)(["a"])


def test_a_damaged_vocabulary(wordpiece, tmp_path):
    with pytest.raises(ValueError, match=r"vocab\.txt has a token twice"):
        tokenizer_of(tmp_path / "tokenizer", [*wordpiece[0], "cat"])(["a"])


# --------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda place: edited(place / "bert" / "config.json", rope=True),
            "bert: not an LDMBertModel that is known here: rope=True",
        ),
        (
            lambda place: edited(place / "bert" / "config.json", max_position_embeddings=76),
            "bert: max_position_embeddings must be at least 77, to which its pipeline fills every text, got 76",
        ),
        (
            lambda place: edited(place / "model_index.json", bert=["transformers", "BertModel"]),
            "its text encoder is a BertModel, known here are LDMBertModel",
        ),
        (
            lambda place: edited(place / "model_index.json", tokenizer=["transformers", "T5Tokenizer"]),
            "bert: its tokenizer is a T5Tokenizer, known here are CLIPTokenizer, CLIPTokenizerFast, BertTokenizer",
        ),
        (
            lambda place: (
                edited(place / "model_index.json", tokenizer=["transformers", "BertTokenizer"])
                or (place / "tokenizer" / "tokenizer.json").unlink()
            ),
            "bert: no tokenizer in {place}/tokenizer (tokenizer.json, or vocab.txt)",
        ),
        (
            lambda place: (place / "bert" / "model.safetensors").unlink(),
            "no weights in {place}/bert (model.safetensors or pytorch_model.bin)",
        ),
        (lambda place: (place / "bert" / "config.json").unlink(), "no config.json in {place}/bert"),
    ],
    ids=["setting", "positions", "encoder", "tokenizer", "vocabulary", "weights", "config"],
)
def test_a_folder_whose_texts_are_not_read(change, message, folder, tmp_path):
    place = copy_of(folder, tmp_path / "ldm")
    change(place)
    found = interop.load(place)
    assert found.text is None and found.no_text.startswith(message.format(place=place))


def test_what_is_left_out_is_said(folder, tmp_path, capsys):
    """The network is read, for contexts of one's own."""
    place = copy_of(folder, tmp_path / "ldm")
    edited(place / "bert" / "config.json", scale_embedding=True)
    with pytest.raises(SystemExit):
        cli.main(["sample", str(place), "--prompt", "a", "--out", str(tmp_path / "a.npz")])
    message = "bert: not an LDMBertModel that is known here: scale_embedding=True"
    assert message in capsys.readouterr().err
    cli.main(["convert", str(place), str(tmp_path / "after")])
    left_out = "without a text encoder, so that its pipeline takes prompts as embeddings: "
    assert left_out + message in capsys.readouterr().out


def test_weights_that_do_not_fit(folder, tmp_path):
    place = copy_of(folder, tmp_path / "ldm")
    edited(place / "bert" / "config.json", encoder_ffn_dim=33)
    with pytest.raises(ValueError, match=r"bert: weights do not fit.* model\.layers\.0\.fc1\.bias is \[32\], expected"):
        interop.load(place)
