"""Package metadata: what is needed, from which version, and what the wheel holds."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

# Floors, on which the suite runs (`make test-floors`). transformers 5.6: `@strict` dataclass configs (5.5 closed the
# known remote-code holes); torch 2.9: FSDP2 whose gradients are right where a parameter is left out; datasets 5.1:
# streams that shuffle their shards and resume; huggingface_hub 1.31, which datasets asks for: a dropped upload is
# repeated, and a listing's bad file names leave nothing in the cache. constraints.txt: what was published with.
INSTALL_REQUIRES = [
    "accelerate>=1.10",
    "datasets>=5.1",
    "detect-secrets>=1.5",
    "evaluate>=0.4.6",
    "filelock>=3.16",
    "huggingface-hub>=1.31",
    "jinja2>=3.1.4",
    "numpy>=2.0",
    "pillow>=11.0",
    "pyarrow>=24.0",
    "pydantic>=2.11",
    "pyyaml>=6.0.2",
    "safetensors>=0.5",
    "tokenizers>=0.22.1",
    "torch>=2.9",
    "tqdm>=4.67",
    "transformers>=5.6",
]

EXTRAS_REQUIRE = {
    # timm's own requirement is a torchvision built for the same torch: see CONTRIBUTING.
    "vision": ["timm>=1.0.23"],
    # PyAV's wheel brings FFmpeg; 17.0.0 and older crash the process on files of the tests. torchcodec, which must fit
    # torch and needs FFmpeg's libraries, serves where PyAV is not.
    "video": ["av>=17.1"],
    # Pictures as phones take them. Its wheel bundles libheif (LGPL-3.0) and the encoder libx265 (GPL-2.0 or later).
    "heic": ["pillow-heif>=1.1"],
    # What the builders of datasets_scripts/ need beyond the rest: a streaming parser, people's HDF5 features, codes
    # of languages, subtitle files.
    "data": ["h5py>=3.11", "ijson>=3.3", "langcodes>=3.5.1", "pysubs2>=1.8.1"],
    "train": ["tensorboard>=2.18"],
    "report": ["matplotlib>=3.9"],
    # Beyond the exact search: any FAISS index; a server or cluster.
    "search": ["faiss-cpu>=1.9", "qdrant-client>=1.16"],
    "lancedb": ["lancedb>=0.40"],  # a table on disk beside the index; the release of constraints.txt
    # `--cluster` of `mmt extract` and `mmt index`; the release of constraints.txt.
    "cluster": ["ray>=2.60"],
    "shots": ["scenedetect-headless>=0.7.2"],  # PySceneDetect, with OpenCV and without a display
    "fonts": ["pylopdf-fonts-zh-cn>=0.1.1"],  # Noto Sans SC (OFL), for Chinese in the pictures of examples/
    "test": ["av>=17.1", "hypothesis>=6.100", "pytest>=8.3", "pytest-xdist>=3.8"],
    "notebooks": ["ipykernel>=7.0", "nbclient>=0.10", "nbformat>=5.10"],  # to run examples/notebooks, as a test does
    "docs": ["mkdocs-material>=9.8", "mkdocstrings[python]>=1.0"],
    "dev": [
        "codespell>=2.4",
        "mypy>=1.14",
        "pre-commit>=4.0",
        "pre-commit-hooks>=5.0",
        "ruff>=0.9",
        "types-PyYAML",
        "types-tqdm",
    ],
    # Other libraries that load a checkpoint: sentence-transformers, MTEB, ONNX Runtime, PEFT for LoRA.
    # Their floors are the releases of constraints.txt: nothing older was tested.
    "plugins": [
        "mteb>=2.26.24",
        "onnx>=1.23.2",
        "onnxruntime>=1.32",
        "onnxscript>=0.7.2",
        "peft>=0.21.2",
        "sentence-transformers>=6.2",
    ],
    # What transformers' own test suite imports: `make test-family`.
    "family": ["parameterized>=0.9"],
    # The peers that benchmarks/ times beside ours. open_clip is not here: it needs torchvision, as timm does.
    "bench": ["av>=17.1", "faiss-cpu>=1.9", "sentence-transformers>=6.2", "usearch>=2.16", "webdataset>=1.0"],
}

setup(
    name="modeling_mmt",
    version="0.1.0",
    description="Multilingual text-video search that transfers from English to other languages, native to the Hub.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="modeling_mmt developers",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords="video retrieval, multilingual, cross-lingual transfer, contrastive learning, transformers",
    packages=find_packages(include=["modeling_mmt", "modeling_mmt.*", "datasets_scripts"]),
    py_modules=["mmt"],
    package_data={
        "modeling_mmt": [
            "data/imagenet_classes.jsonl",
            "data/LICENSE-WordNet-3.0.txt",
            "hub/model_card.md",
            "recipes/**",
            "report/*.jinja",
        ],
        "datasets_scripts": ["emoji9/**"],
    },
    entry_points={"console_scripts": ["mmt = mmt:main"]},
    python_requires=">=3.11,<3.14",  # the versions that the suite ran on
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
