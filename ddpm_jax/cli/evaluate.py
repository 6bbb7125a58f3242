"""ddpm-jax evaluate"""

import contextlib
import dataclasses
import zipfile
from pathlib import Path
from typing import Annotated, Any

import tyro

from ddpm_jax import data, opening
from ddpm_jax.cli import drawn
from ddpm_jax.cli.parsing import parse
from ddpm_jax.data.finding import Finder
from ddpm_jax.data.labels import NONE
from ddpm_jax.data.latents import is_latents
from ddpm_jax.data.source import ARRAY_ENDINGS
from ddpm_jax.evaluate import features as feature_networks
from ddpm_jax.evaluate import metrics, picture_sets, protocol, quality
from ddpm_jax.evaluate.features import Features
from ddpm_jax.evaluate.picture_sets import PictureSet
from ddpm_jax.host.bars import EvaluateBar
from ddpm_jax.host.picture_output import RECORD
from ddpm_jax.host.storage import Say
from ddpm_jax.runs import checkpoint
from ddpm_jax.trained import Trained

NUM_IMAGES = 10000
"""Drawn, where nobody says."""


@dataclasses.dataclass(frozen=True)
class Data:
    """How --against, and a folder or file of pictures as SOURCE, are read; a run knows its own. As in train."""

    dir: str | None = None
    split: str | None = None
    """Of --against; "train" by default."""
    image_size: int | None = None
    key: str | None = None
    transparency: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateArguments(drawn.DrawArguments):
    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """What is evaluated: a run's directory; a folder or checkpoint of another project, or hf:OWNER/NAME, of which
    pictures are drawn; a folder of pictures; or a .npz or .npy file of them (arr_0 or images, uint8 [N, H, W, C])."""
    against: str | None = None
    """The reference: a data set as of --data.name in train, a folder of pictures, a .npz or .npy file of them, or a
    .npz file of statistics (mu, sigma; --data.key NAME takes pictures beside them); by default a run's own data."""
    against_images: int | None = None
    """The first so many images of the reference; all by default."""
    num_images: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """10000 by default of what is drawn, all of pictures that are there."""
    metrics: tuple[str, ...] = ("fid", "kid")
    """Of fid, sfid, fid-infinity, kid, cmmd, is, precision-recall, density-coverage, two-sample."""
    statistics: Path | None = None
    """A .npz file, new, for mean and covariance of the reference's features, as pytorch-fid and ADM's evaluator read
    them (mu, sigma; mu_s, sigma_s), and --against."""
    features: str = "inception"
    """The network whose features are compared: inception, efficientnet, digits, or a FILE with weights."""
    inputs: str = "tensorflow"
    """How a picture becomes the input of FID's Inception: tensorflow, as of torch-fidelity and ADM, or pytorch-fid."""
    data: Data = Data()
    cache: Path | None = None
    """Where features of references are kept for the next call; ~/.cache/ddpm_jax by default."""
    out: Path | None = None
    """The results are in a folder in this one; WORKDIR/evaluate of a run, ./NAME_evaluate of all else."""


def evaluate(argv: list[str]) -> None:
    """Metrics of pictures against a reference: a table, files with all of it, and the protocol."""
    arguments = parse(EvaluateArguments, argv, "evaluate")
    features = feature_networks.of_name(arguments.features, inputs=arguments.inputs)
    chosen = metrics.chosen(arguments.metrics, features)
    with contextlib.closing(EvaluateBar()) as bar:
        trained = None if are_pictures(arguments.source) else drawn.opened(arguments, "evaluate")
        pictures = read(arguments, bar.say) if trained is None else to_draw(arguments, trained)
        needed = any(metric.needs != "nothing" for metric in chosen.values())
        reference = reference_of(arguments, features, trained, bar.say) if needed else None
        check_statistics(arguments.statistics, reference)
        home = arguments.out or home_of(arguments.source, trained)
        cache = arguments.cache or quality.cache()
        found = quality.evaluate(pictures, reference, features, chosen, home, cache, bar, seed=arguments.seed)
        if arguments.statistics is not None:
            assert isinstance(reference, PictureSet)
            quality.write_statistics(arguments.statistics, reference, features, cache, bar)
    print(protocol.table_text(found.numbers, found.best))
    for note in found.notes:
        print(note)
    against = "" if reference is None else f" against {reference.where}"
    print(f"{pictures.count} images of {pictures.where}{against}; the numbers: {found.path}.json, with their protocol")


def are_pictures(source: str) -> bool:
    """Whether a source is pictures, and no network to draw from.

    Raises:
      FileNotFoundError: nothing is there.
    """
    path = Path(source)
    if source.startswith("hf:") or checkpoint.find_run(path) is not None:
        return False
    if not path.exists():
        raise FileNotFoundError(f"no run, network or pictures at {source}")
    if path.suffix.lower() in ARRAY_ENDINGS:
        return True
    networks = ("model_index.json", "config.json")
    return path.is_dir() and not any((path / name).exists() for name in networks) and bool(Finder(path).files)


def read(arguments: EvaluateArguments, say: Say) -> PictureSet:
    """The pictures that are there.

    Raises:
      ValueError: options of drawing; pictures that are not all drawn; as data.load and picture_sets.of_source.
    """
    own = ("source", "num_images", "batch_size", "seed")
    for item in dataclasses.fields(drawn.DrawArguments):
        if item.name not in own and getattr(arguments, item.name) != _default(item):
            raise ValueError(
                f"--{item.name.replace('_', '-')} is for what is drawn, and {arguments.source} is pictures"
            )
    if (Path(arguments.source) / RECORD).exists():
        raise ValueError(f"{arguments.source} has a part of the pictures of `sample`: the same command finishes it")
    # A path is a path: a folder that is called like a data set is not that.
    place = arguments.source if Path(arguments.source).is_absolute() else f"./{arguments.source}"
    source = data.load(place, **_reading(arguments.data, place), labels=NONE, say=say)
    return picture_sets.of_source(source, arguments.num_images, "--num-images", arguments.source)


def to_draw(arguments: EvaluateArguments, trained: Trained) -> PictureSet:
    """The pictures of a network.

    Raises:
      ValueError: as drawn.preset_and_labels and picture_sets.drawn.
    """
    preset, labels = drawn.preset_and_labels(arguments, trained)
    count = NUM_IMAGES if arguments.num_images is None else arguments.num_images
    known = drawn.protocol(arguments, trained, preset, labels)
    numbers = count, arguments.batch_size, arguments.seed
    named = {"where": arguments.source, "known": known, "decoded": arguments.decode_batch_size}
    return picture_sets.drawn(trained, preset, labels, *numbers, **named)


def check_statistics(path: Path | None, reference: PictureSet | quality.Statistics | None) -> None:
    """Whether they can be written.

    Raises:
      ValueError: no reference of pictures; another ending; a file that is there.
    """
    if path is None:
        return
    if not isinstance(reference, PictureSet):
        raise ValueError(f"--statistics {path} is for a reference of pictures, and a metric that compares with it")
    if path.suffix != ".npz" or path.exists():
        wrong = "is there already" if path.exists() else "must end in .npz"
        raise ValueError(f"--statistics {path} {wrong}")


def reference_of(
    arguments: EvaluateArguments, features: Features, trained: Trained | None, say: Say
) -> PictureSet | quality.Statistics | None:
    """What --against names, or a run's own data; None where neither is.

    Raises:
      FileNotFoundError, ValueError: as data.load and picture_sets.of_source.
    """
    told = arguments.data
    if arguments.against is None:
        if trained is None or trained.run is None:
            return None
        for item in dataclasses.fields(Data):
            if (value := getattr(told, item.name)) is not None:
                raise ValueError(f"--data.{item.name.replace('_', '-')} {value} is for --against: a run knows its data")
        own = trained.run.data
        if is_latents(Path(own.name)):
            raise ValueError(
                f"{arguments.source} was trained on latents, {own.name}: give its images as --against DATA"
            )
        source = data.load(own.name, **{**own.arguments(), "labels": NONE}, say=say)
        words = f"{own.name} {own.split}"
        say(f"the reference is the run's own data: {words}, {len(source)} images")
    elif told.key is None and holds_statistics(Path(arguments.against)):
        given = {f"--data.{item.name.replace('_', '-')}": getattr(told, item.name) for item in dataclasses.fields(Data)}
        for option, value in {**given, "--against-images": arguments.against_images}.items():
            if value is not None:
                raise ValueError(f"{option} {value} is for pictures, and {arguments.against} has statistics of some")
        return quality.read_statistics(Path(arguments.against), features)
    else:
        split = {"data_dir": told.dir, **({} if told.split is None else {"split": told.split})}
        source = data.load(arguments.against, **split, **_reading(told, arguments.against), labels=NONE, say=say)
        words = f"{arguments.against} {told.split or 'train'}"
    return picture_sets.of_source(source, arguments.against_images, "--against-images", words)


def holds_statistics(path: Path) -> bool:
    """Whether a file is one of mean and covariance; ADM's have the pictures as well, and are taken for statistics."""
    if path.suffix != ".npz" or not path.is_file():
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return "mu.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False  # which who reads the pictures says


def home_of(source: str, trained: Trained | None) -> Path:
    """The folder of the results' folders."""
    if trained is not None:
        return opening.results(source, trained, "evaluate")
    return Path(f"{opening.name_of(source)}_evaluate")


def _reading(told: Data, place: str) -> dict[str, Any]:
    """What data.load takes of a place that it can be for."""
    path = Path(place)
    is_array = path.suffix.lower() in ARRAY_ENDINGS
    key = {"key": told.key} if path.suffix.lower() == ".npz" else {}
    transparency = {"transparency": told.transparency} if path.is_dir() and not is_array else {}
    return {"image_size": told.image_size, **key, **transparency}


def _default(item: dataclasses.Field) -> Any:
    return item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
