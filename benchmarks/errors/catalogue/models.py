"""What is trained."""

from __future__ import annotations

from benchmarks.errors.case import Case, Chapter
from benchmarks.errors.catalogue.options import NET

_HIDING = {"PYTHONPATH": "hiding"}
_IMAGES = "--image-size 32 --batch-size 4"
_LM = "--recipe language-model --seq-len 16 --batch-size 4"


def _built(name: str, shape: str = "1", options: str = "") -> str:
    extra = f" {options}" if options else ""
    return f"bundlerun run --model models.py:{name} --shape {shape}{extra} {_IMAGES} pictures"


MODELS = Chapter(
    "Models",
    (
        Case(
            name="a misspelt model",
            line="bundlerun run --model resnet81 synthetic",
            told="nearest: resnet18",
        ),
        Case(
            name="a model of another library",
            line="bundlerun run --model convnextv2_tiny synthetic",
            told="timm:convnextv2_tiny",
            needs=("timm",),
        ),
        Case(
            name="a misspelt model of timm",
            line="bundlerun run --model timm:convnext_tinyy synthetic",
            told="nearest: convnext_tiny",
            needs=("timm",),
        ),
        Case(
            name="a model of another task",
            line="bundlerun run --model fcn_resnet50 synthetic",
            told="no classification model of torchvision",
        ),
        Case(
            name="a folder that is not there",
            line=f"bundlerun run --model hf:nowhere {_IMAGES} pictures",
            told="no such folder",
        ),
        Case(
            name="a folder without config.json",
            line=f"bundlerun run --model hf:empty {_IMAGES} pictures",
            told="the folder has no config.json",
        ),
        Case(
            name="a config.json that is none",
            line=f"bundlerun run --model hf:broken {_IMAGES} pictures",
            told="cannot be read as JSON",
        ),
        Case(
            name="a type of model that transformers does not have",
            line=f"bundlerun run --model hf:future --shape 1 {_IMAGES} pictures",
            told="has no model of type 'gpt99'",
            needs=("transformers",),
        ),
        Case(
            name="a model that reads text, for images",
            line=f"bundlerun run --model hf:bert --shape 1 {_IMAGES} pictures",
            told="takes input_ids, and this recipe has pixel_values",
            needs=("transformers",),
        ),
        Case(
            name="a package that is not installed: timm",
            line="bundlerun run --model timm:resnet18 synthetic",
            told="pip install 'bundlerun[timm]'",
            environ={**_HIDING, "HIDDEN": "timm"},
        ),
        Case(
            name="a package that is not installed: transformers",
            line=f"bundlerun run --model hf:bert --shape 1 {_IMAGES} pictures",
            told="pip install 'bundlerun[hf]'",
            environ={**_HIDING, "HIDDEN": "transformers"},
        ),
        Case(
            name="a package that is not installed: tokenizers",
            line=f"bundlerun run {_LM} --model models.py:words --shape 1 --tokenizer bert book.txt",
            told="pip install 'bundlerun[text]'",
            environ={**_HIDING, "HIDDEN": "tokenizers"},
        ),
        Case(
            name="a package that is not installed: peft",
            line=_built("net", options="--lora 4"),
            told="pip install 'bundlerun[lora]'",
            environ={**_HIDING, "HIDDEN": "peft"},
        ),
        Case(
            name="a file that is not there",
            line="bundlerun run --model nowhere.py:build synthetic",
            told="--model 'nowhere.py': no such file",
        ),
        Case(
            name="a module that is not there",
            line="bundlerun run --model nowhere.models:build synthetic",
            told="Python finds no module 'nowhere.models'",
        ),
        Case(
            name="a function that is not there",
            line=_built("nett"),
            told="has no function 'nett'; nearest: net",
        ),
        Case(
            name="a function that gives no model",
            line=_built("nothing"),
            told="returned NoneType",
        ),
        Case(
            name="a function that wants more",
            line=_built("wants"),
            told="needs extra",
        ),
        Case(
            name="a function that fails",
            line=_built("fails"),
            told="RuntimeError: the weights are gone",
            shows_code=True,
        ),
        Case(
            name="a model with nothing to train",
            line=_built("untrained"),
            told="no parameter that is trained",
        ),
        Case(
            name="a layer without a shape",
            line=_built("lazy"),
            told="has no shape yet",
        ),
        Case(
            name="an optimizer that wants closures",
            line=f"bundlerun run --recipe recipes.py {NET} any",
            environ={"KIND": "lbfgs"},
            told="LBFGS",
        ),
    ),
)

CUTS = Chapter(
    "Cuts",
    (
        Case(
            name="a misspelt cut",
            line=_built("net", "1,1", "--cut bb"),
            told="unknown cut 'bb' of Net; nearest: b",
        ),
        Case(
            name="too many cuts",
            line=_built("net", "1,1", "--cut b,c"),
            told="--cut b,c makes 3 stages, --shape 1,1 has 2",
        ),
        Case(
            name="a value that is read before the cut",
            line=_built("reads", "1,1", "--cut c"),
            told="reads the numbers of a tensor at",
        ),
        Case(
            name="layers that are left out by chance",
            line=_built("drops", "1,1", "--cut c"),
            told="by random numbers",
        ),
        Case(
            name="two parameters in one memory",
            line=_built("twins", "1,1", "--cut c"),
            told="are two parameters in the same memory",
        ),
        Case(
            name="a buffer on both sides",
            line=_built("buffer", "1,1", "--cut c"),
            told="into two stages",
        ),
        Case(
            name="a cut inside of what is recomputed",
            line=_built("recomputes", "1,1", "--cut c"),
            told="inside a call of torch.utils.checkpoint",
        ),
        Case(
            name="a train() that sets something else each time",
            line=_built("moody", "1,1", "--cut c --cutter graph"),
            told="sets 'b' another way when it is called again",
        ),
        Case(
            name="stages of one's own that are too many",
            line=_built("listed", "1,1"),
            told="3",
        ),
    ),
)

WEIGHTS = Chapter(
    "Weights to begin with",
    (
        Case(
            name="weights that are not there",
            line=_built("net", options="--init-from nowhere.pth"),
            told="--init-from 'nowhere.pth': no such file or folder",
        ),
        Case(
            name="weights of another architecture",
            line=_built("net", options="--init-from other.safetensors"),
            told="is of another model than --model models.py:net",
        ),
        Case(
            name="weights that are cut off",
            line=_built("net", options="--init-from short.safetensors"),
            told="short.safetensors",
        ),
        Case(
            name="a file that wants to run code",
            line=_built("net", options="--init-from pickled.pth"),
            told="holds more than tensors and numbers, which is not loaded",
        ),
        Case(
            name="a new head that the model does not have",
            line=_built("net", options="--init-from net.safetensors --new-head=zzz"),
            told="zzz",
        ),
        Case(
            name="nothing of that name to freeze",
            line=_built("net", options="--freeze zzz"),
            told="--freeze 'zzz' names no parameters",
        ),
        Case(
            name="all of it frozen",
            line=_built("net", options="--freeze '*'"),
            told="leaves nothing to train",
        ),
        Case(
            name="nothing of that name for an adapter",
            line=_built("net", options="--lora 4 --lora-targets zzz"),
            told="--lora-targets 'zzz' names no layer",
            needs=("peft",),
        ),
    ),
)
