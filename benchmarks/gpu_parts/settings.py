"""Sizes of the parts: full sizes for a GPU, and reduced sizes that run every line on a CPU within two minutes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Sizes of all parts."""

    name: str
    device: str
    tests: tuple[str, ...]
    """Arguments of pytest that select the tests."""
    models: tuple[str, ...]
    """Models of the embedded track whose stored records are compared."""
    attacks: tuple[str, ...]
    samples: int
    """Number of samples of each of the thirteen datasets."""
    precisions: tuple[str, ...]
    networks: tuple[str, ...]
    """Architectures whose attacks are timed, with random weights; "tiny" is for CPUs."""
    images: int
    batch_sizes: tuple[int, ...]
    throughput_attacks: tuple[str, ...]
    eps: str
    """Radius at which an attack breaks some but not all samples of a network with random weights."""
    matmul: int
    """Number of rows of two square matrices. The speed of their product is the ceiling that attacks are compared
    with."""
    rounds: int
    training_batch: int
    training_network: str
    steps: int


def full_size() -> Settings:
    """Return the sizes for a GPU. Batch sizes that do not fit the memory are skipped."""
    return Settings(
        name="full",
        device="cuda",
        tests=("-m", "cuda"),
        models=("clip", "agft", "fare", "pmg-aft"),
        attacks=("pgd-20", "cw", "autoattack"),
        samples=16,
        precisions=("float32", "tf32", "bfloat16"),
        networks=("ViT-B-32", "ViT-L-14"),
        images=64,
        batch_sizes=(64, 128, 256, 512, 1024),
        throughput_attacks=("pgd-20", "apgd-ce", "apgd-t", "fab-t", "square"),
        eps="1/255",
        matmul=8192,
        rounds=2,
        training_batch=256,
        training_network="ViT-B-32",
        steps=50,
    )


def reduced_size() -> Settings:
    """Return the sizes for a test on a CPU."""
    return Settings(
        name="reduced",
        device="cpu",
        tests=("-m", "cuda", "-k", "attacks or engine"),
        models=("clip",),
        attacks=("pgd-20",),
        samples=2,
        precisions=("float32", "bfloat16"),
        networks=("tiny",),
        images=4,
        batch_sizes=(2, 4),
        throughput_attacks=("pgd-3", "square"),
        eps="4/255",
        matmul=256,
        rounds=1,
        training_batch=8,
        training_network="tiny",
        steps=3,
    )
