"""Every wrong combination of controls: one line that names it, exit code 2, nothing changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import imageprompt as ip
from ids import stable
from imageprompt import cli
from imageprompt.core import errors
from imageprompt.generation import generate
from imageprompt.generation.reference import Reference
from imageprompt.library import Library
from tiny_stack import SIDE, save_stack

A, B, M, N = "{a}", "{b}", "{mask}", "{mask}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """Pictures, masks, a ControlNet, a library with a style of another adapter, embeddings."""
    from diffusers import ControlNetModel, StableDiffusionPipeline

    made = tmp_path_factory.mktemp("control")
    for name in ("a", "b"):
        Image.new("RGB", (SIDE, SIDE), "red").save(made / f"{name}.png")
    Image.new("L", (SIDE, SIDE), 255).save(made / "mask.png")
    Image.new("L", (SIDE, 2 * SIDE), 255).save(made / "tall.png")
    (made / "text.png").write_text("no picture")
    np.save(made / "faces.npy", np.ones((1, 7), np.float32))
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder)
    torch.manual_seed(0)
    wide = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8,) * 4)
    wide.save_pretrained(made / "net")
    other = save_stack(made / "other", seed=5)
    adapter = ip.Adapter.load(other / "adapters" / "base.safetensors")
    adapter.attach(pipe, encoder=pipe.image_encoder)
    Library(made / "library").add("foreign", adapter, [made / "a.png"])
    adapter.detach()
    return made


@pytest.fixture
def refused(
    tiny_bundled: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run `imageprompt generate`; returns its one line."""

    def run(*arguments: str) -> str:
        capsys.readouterr()
        before = sorted(folder.rglob("*"))
        places = {path.stem: str(path) for path in folder.glob("*.*")}
        formatted = [argument.format(**places, folder=folder) for argument in arguments]
        command = ["generate", "--steps", "2", "--output", str(tmp_path / "out")]
        try:
            code = cli.main([*command, "--library", str(folder / "library"), *formatted])
        except SystemExit as stopped:  # what argparse refuses
            code = int(stopped.code or 0)
        printed = capsys.readouterr()
        assert code == 2, printed
        assert printed.out == ""
        (line,) = printed.err.splitlines()
        assert line.startswith(("imageprompt: error: ", "imageprompt generate: "))
        assert not (tmp_path / "out").exists()
        assert sorted(folder.rglob("*")) == before
        return line

    return run


ONE, TWO = f"--reference {A}", f"--reference {A} --reference {B}"
WRONG = [
    # nothing to act on
    (f"--mask {M}", "--mask without a reference"),
    ("--preset linear", "--preset without a reference"),
    ("--schedule 0-0.5 --scale 0", "--schedule without a reference"),
    ("--fusion average", "--fusion without a reference"),
    ("--weights 1,2", "--weights without a reference"),
    (f"--negative-reference {A}", "--negative-reference without a reference"),
    ("--face 0", "--face without a reference"),
    (f"--also --reference {A}", "without a first reference"),
    (f"{ONE} --also --scale 0.5", "--also without a reference"),
    (f"{ONE} --strength 0.5", "--strength without --init-image"),
    (f"{ONE} --inpaint-mask {M}", "--inpaint-mask without --init-image"),
    (f"{ONE} --control-image {A}", "--control-image without --controlnet"),
    (f"{ONE} --controlnet {{folder}}/net", "--controlnet without --control-image"),
    (f"{ONE} --control-scale 0.5", "--control-scale without --controlnet"),
    # two sources, of which one is used
    (f"{ONE} --style foreign", "--reference and --style"),
    (f"--style foreign --image-prompt {A}", "--image-prompt and --style"),
    (
        "--style foreign --fusion average",
        "--fusion with --style: what --style names is encoded already",
    ),
    ("--style foreign --framing pad", "--framing with --style"),
    (f"--style foreign --face-embeddings {A}", "--style and --face-embeddings"),
    # twice
    (
        f"{ONE} --scale 0.5 --reference {B} --scale 0.3",
        "generate: --scale is given twice; --also starts another reference. See imageprompt gen",
    ),
    ("--style foreign --style another", "--style is given twice"),
    # how many
    (f"{ONE} --mask {M} --mask {N}", "2 masks for 1 reference"),
    (f"{TWO} --mask {M} --mask {M} --mask {N}", "3 masks for 2 reference"),
    (f"{TWO} --reference {A} --mask {M} --mask {N}", "2 masks for 3 reference"),
    (f"--style foreign --mask {M} --mask {N}", "2 masks for 1 reference"),
    (f"{TWO} --mask {M} --mask {N} --fusion average", "'average' with 2 masks"),
    (f"{ONE} --weights 0.7,0.3", "2 weight(s) for 1 reference"),
    (f"{TWO} --weights 1", "1 weight(s) for 2 reference"),
    (f"{TWO} --fusion weighted", "it needs weights"),
    (f"{TWO} --fusion attention-weighted --weights 1,2", "it computes its own weights"),
    (
        f"{TWO} --reference-mask {M} --reference-mask {M} --reference-mask {N}",
        "3 masks for 2 reference",
    ),
    # numbers
    (f"{ONE} --scale nan", "scale = nan"),
    (f"{ONE} --scale style=nan", "scale['style'] = nan"),
    (f"{ONE} --scale style=much", "scale 'much': not a number"),
    (f"{ONE} --scale nowhere=1", "scale['nowhere']"),
    (f"{ONE} --scale {{{{", "not valid JSON"),
    (f"{ONE} --scale {{{{}}}}", "scale"),
    (f"{ONE} --scale []", "scale"),
    (f"{ONE} --scale 3:x", "layer 3 = 'x'"),
    (f"{ONE} --scale 99:1", "99"),
    (f"{ONE} --scale 3:1,3:0.5", "layer 3 appears twice"),
    (f"{ONE} --scale style=1,style=0.5", "names 'style' twice"),
    (f"{ONE} --composition nan --preset style-and-composition", "composition = nan"),
    (f"{ONE} --composition 1", "composition = 1.0: no preset is given"),
    (f"{ONE} --boost 1 --preset linear", "boost = 1.0: not used by 'linear'"),
    (f"{ONE} --preset linear --scale style=1", "scale of preset 'linear'"),
    (f"{ONE} --preset styl", "Did you mean 'style'"),
    (f"{ONE} --scaling Z", "no such scaling"),
    (f"{ONE} --lora 3", "lora = 3"),
    (f"{ONE} --lora 0.5", "lora=0.5: this adapter has no LoRA"),
    (f"{ONE} --schedule 0.5-0.1", "ends before it starts"),
    (f"{ONE} --schedule 0-2", "a fraction of the steps"),
    (f"{ONE} --schedule nan", "schedule"),
    (f"{ONE} --schedule 1,nan", "schedule"),
    (f"{ONE} --schedule 1,5", "schedule[1]"),
    (f"{ONE} --schedule 0-1~slowly", "no such curve"),
    (f"{ONE} --schedule ~", "schedule ' ': empty"),
    (f"{ONE} --weights nan", "finite numbers"),
    (f"{ONE} --weights x", "weights 'x': not a number. Give numbers such as 0.7,0.3"),
    (f"{ONE} --noise 2", "a strength from 0 to 1"),
    (f"{ONE} --noise rain:0.4", "noise rain"),
    (f"{ONE} --noise nan", "noise"),
    (f"{ONE} --noise-seed -1", "noise_seed"),
    (f"{ONE} --noise-seed 3", "noise_seed= without noise="),
    (f"{ONE} --subtract-strength 0.4", "subtract_strength= without subtract_text="),
    (f"{ONE} --text-encoder {{folder}}", "text_encoder= without text= or subtract_text="),
    (f"{ONE} --fusion blend", "no such fusion"),
    (f"{ONE} --fusion-text star", "only 'attention-weighted'"),
    (f"{ONE} --framing fold", "framing 'fold': not crop, squash, pad or tiles"),
    (f"{ONE} --framing crop:nan,0", "a position is x, y"),
    (f"{ONE} --subtract-text star --subtract-strength nan", "subtract_strength"),
    (f"{ONE} --subtract-text star", "which share no space with text features"),
    (f"{ONE} --init-image {A} --strength 0", "strength 0"),
    (f"{ONE} --init-image {A} --strength 1.5", "strength 1.5"),
    (f"{ONE} --init-image {A} --strength nan", "strength nan"),
    (f"{ONE} --init-image {A} --strength 0.1", "less than one step"),
    (f"{ONE} --controlnet {{folder}}/net --control-image {A} --control-scale nan", "scale nan"),
    # files
    (f"{ONE} --mask {{folder}}/none.png", "no such file"),
    (f"{ONE} --mask {{text}}", "text.png"),
    (f"{ONE} --reference-mask {{tall}}", "it does not have the picture's shape"),
    (f"{ONE} --negative-reference {{text}}", "text.png"),
    (f"{ONE} --init-image {{text}}", "text.png"),
    (f"{ONE} --init-image {A} --inpaint-mask {{text}}", "text.png"),
    (f"{ONE} --control-image {{text}} --controlnet {{folder}}/net", "text.png"),
    (f"{ONE} --control-image {A} --controlnet {{folder}}/none", "none"),
    (f"{ONE} --control-image {A} --controlnet {{folder}}/library", "library"),
    (
        f"{ONE} --control-image {A} --controlnet {{folder}}/net",
        "downscales pictures by 8; this base's VAE by 2",
    ),
    # styles, adapters and faces
    ("--style none", "none"),
    ("--style ../foreign", "../foreign"),
    ("--style foreign --adapter base", "made with an adapter of variant base"),
    ("--style foreign --adapter plus", "made with an adapter of variant base"),
    (f"{ONE} --variant faceid-plus-v2", "faceid-plus-v2"),
    (f"{ONE} --variant nobody", "nobody"),
    (f"{ONE} --faces {{folder}}", "faces"),
    (f"{ONE} --face smallest", "smallest"),
    ("--face-embeddings {faces}", "face"),
    (f"{ONE} --lora-mode dead", "dead"),
    (f"{ONE} --face-strength 2", "only FaceID-plus v2"),
    (f"{ONE} --guidance twice", "not a known layout"),
    (f"{ONE} --guidance up,down", "branches are 'negative' or 'positive'"),
    (f"{ONE} --also --reference {{text}}", "text.png"),
    (f"{ONE} --also --reference {B} --scale nan", "nan"),
    (f"{ONE} --also --reference {B} --adapter none", "base, plus"),
    (f"{ONE} --also 7", "generate: unexpected argument '7'. See imageprompt generate --help"),
    (f"{ONE} --guidance 7", "Did you mean --guidance-scale 7?"),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=[line for line, _ in WRONG])
def test_wrong_combinations(arguments: str, words: str, refused: Callable[..., str]) -> None:
    assert words in refused(*(part.replace("~", " ") for part in arguments.split()))


OBJECTS = [
    ({"reference": []}, errors.PictureError, "no reference"),
    ({"mask": []}, errors.OptionError, "the list is empty"),
    ({"mask": np.full((4, 4), np.nan)}, errors.OptionError, "0 to 1"),
    ({"mask": np.zeros((4, 4, 4))}, errors.OptionError, "height, width"),
    ({"mask": "red"}, errors.PictureError, "red"),
    ({"mask": {}}, errors.OptionError, "a mask of type dict"),
    ({"weights": []}, errors.OptionError, "weights"),
    ({"weights": 0.5}, errors.OptionError, "weights"),
    ({"weights": [True]}, errors.OptionError, "weights"),
    ({"schedule": []}, errors.OptionError, "the list of numbers is empty"),
    ({"schedule": lambda x: x}, errors.OptionError, "cannot be written as text"),
    ({"schedule": 0.5}, errors.OptionError, "not a schedule"),
    ({"scale": None}, errors.ScaleError, "None"),
    ({"scale": {}}, errors.ScaleError, "scale"),
    ({"preset": 7}, errors.OptionError, "no such preset"),
    ({"controls": {"scale": 1}}, errors.OptionError, "Controls"),
    ({"controls": ip.Controls(), "preset": "linear"}, errors.OptionError, "Give one or the other"),
    ({"controls": ip.Controls(), "scale": 0.5}, errors.OptionError, "Give one or the other"),
    ({"also": [7]}, errors.OptionError, "a list of Reference"),
    ({"also": "b.jpg"}, errors.OptionError, "a list of Reference"),
    ({"also": [Reference()]}, errors.PictureError, "without a reference"),
    ({"negative_reference": [7]}, errors.PictureError, "int"),
    ({"subtract_text": torch.zeros(24), "adapter": "base"}, errors.OptionError, "a recipe can"),
    ({"style": 7, "reference": None}, errors.OptionError, "of type int"),
    ({"init_image": 7}, errors.PictureError, "int"),
    (
        {"controlnet": object(), "control_image": Image.new("RGB", (16, 16))},
        errors.OptionError,
        "object",
    ),
    ({"adapter": object(), "variant": "plus"}, errors.OptionError, "of a loaded adapter"),
    (
        {"image_prompt": "a.safetensors", "encoder": "b", "reference": None},
        errors.OptionError,
        "--encoder with --image-prompt: what --image-prompt names is encoded already",
    ),
    ({"maks": 1}, errors.OptionError, "Did you mean mask"),
    ({"strength": "0.5", "init_image": Image.new("RGB", (16, 16))}, errors.OptionError, "strength"),
    ({"library": 7, "style": "x", "reference": None}, errors.OptionError, "library"),
]


@pytest.mark.parametrize(("change", "kind", "words"), OBJECTS, ids=[stable(o[0]) for o in OBJECTS])
def test_wrong_objects(
    change: dict[str, object], kind: type[errors.ImagePromptError], words: str, tiny_bundled: Path
) -> None:
    picture = Image.new("RGB", (SIDE, SIDE), "red")
    with pytest.raises(kind, match=words) as caught:
        generate(**{"reference": picture, "steps": 2, "progress": False, **change})
    assert "\n" not in str(caught.value)


def test_a_pipeline_is_left_as_it_was_by_whatever_is_refused_late(tiny_folder: Path) -> None:
    """The second reference is refused when the first is attached and in use already."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder)
    before = (dict(pipe.unet.attn_processors), list(pipe.unet._forward_pre_hooks))
    plus, base = (
        str(tiny_folder / "adapters" / f"{name}.safetensors") for name in ("plus", "base")
    )
    red = Image.new("RGB", (SIDE, SIDE), "red")
    also = [Reference(reference=red, adapter=base, scale={"nowhere": 1.0})]
    with pytest.raises(errors.ScaleError, match="nowhere"):
        generate("", red, base=pipe, adapter=plus, also=also, steps=1, progress=False)
    assert (dict(pipe.unet.attn_processors), list(pipe.unet._forward_pre_hooks)) == before
