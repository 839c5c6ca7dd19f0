"""Title, authors, venue and year of papers, from model cards and for the papers of the bundled cards."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field

from robustbench_vlm.core.strict_json import STRICT

_Name = Annotated[str, Field(min_length=1, max_length=200)]


@dataclass(frozen=True)
class Paper:
    """The facts that a citation of a paper needs."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    title: Annotated[str, Field(min_length=1, max_length=400)]
    """The title."""
    authors: Annotated[tuple[_Name, ...], Field(max_length=200)]
    """The full names of the authors in their order, such as "Christian Schlarmann"."""
    venue: _Name
    """The short name of the conference or journal, such as "ICML". "arXiv" for a preprint."""
    year: Annotated[int, Field(ge=1900, le=2200)]
    """The year of publication."""

    @property
    def label(self) -> str:
        """Venue and year, such as "ICML 2024"."""
        return f"{self.venue} {self.year}"


def _paper(title: str, authors: str, venue: str, year: int) -> Paper:
    return Paper(title, tuple(authors.split(", ")), venue, year)


# Each record is from the BibTeX entry or the title page of the released code, or from the record of the publisher.
PAPERS: Mapping[str, Paper] = {
    "https://arxiv.org/abs/2103.00020": _paper(
        "Learning Transferable Visual Models From Natural Language Supervision",
        "Alec Radford, Jong Wook Kim, Chris Hallacy, Aditya Ramesh, Gabriel Goh, Sandhini Agarwal, Girish Sastry,"
        " Amanda Askell, Pamela Mishkin, Jack Clark, Gretchen Krueger, Ilya Sutskever",
        "ICML",
        2021,
    ),
    "https://arxiv.org/abs/2212.07016": _paper(
        "Understanding Zero-shot Adversarial Robustness for Large-Scale Models",
        "Chengzhi Mao, Scott Geng, Junfeng Yang, Xin Wang, Carl Vondrick",
        "ICLR",
        2023,
    ),
    "https://arxiv.org/abs/2212.07143": _paper(
        "Reproducible scaling laws for contrastive language-image learning",
        "Mehdi Cherti, Romain Beaumont, Ross Wightman, Mitchell Wortsman, Gabriel Ilharco, Cade Gordon,"
        " Christoph Schuhmann, Ludwig Schmidt, Jenia Jitsev",
        "CVPR",
        2023,
    ),
    "https://arxiv.org/abs/2401.04350": _paper(
        "Pre-trained Model Guided Fine-Tuning for Zero-Shot Adversarial Robustness",
        "Sibo Wang, Jie Zhang, Zheng Yuan, Shiguang Shan",
        "CVPR",
        2024,
    ),
    "https://arxiv.org/abs/2402.12336": _paper(
        "Robust CLIP: Unsupervised Adversarial Fine-Tuning of Vision Embeddings for Robust Large Vision-Language"
        " Models",
        "Christian Schlarmann, Naman Deep Singh, Francesco Croce, Matthias Hein",
        "ICML",
        2024,
    ),
    "https://arxiv.org/abs/2403.01849": _paper(
        "One Prompt Word is Enough to Boost Adversarial Robustness for Pre-trained Vision-Language Models",
        "Lin Li, Haoyan Guan, Jianing Qiu, Michael Spratling",
        "CVPR",
        2024,
    ),
    "https://arxiv.org/abs/2407.14971": _paper(
        "Sim-CLIP: Unsupervised Siamese Adversarial Fine-Tuning for Robust and Semantically-Rich Vision-Language"
        " Models",
        "Md Zarif Hossain, Ahmed Imteaj",
        "arXiv",
        2024,
    ),
    "https://arxiv.org/abs/2410.21802": _paper(
        "Text-Guided Attention is All You Need for Zero-Shot Robustness in Vision-Language Models",
        "Lu Yu, Haiyang Zhang, Changsheng Xu",
        "NeurIPS",
        2024,
    ),
    "https://arxiv.org/abs/2503.03613": _paper(
        "CLIP is Strong Enough to Fight Back: Test-time Counterattacks towards Zero-shot Adversarial Robustness of"
        " CLIP",
        "Songlong Xing, Zhengyu Zhao, Nicu Sebe",
        "CVPR",
        2025,
    ),
    "https://arxiv.org/abs/2506.03355": _paper(
        "Robustness in Both Domains: CLIP Needs a Robust Text Encoder",
        "Elias Abad Rocamora, Christian Schlarmann, Naman Deep Singh, Yongtao Wu, Matthias Hein, Volkan Cevher",
        "NeurIPS",
        2025,
    ),
    "https://arxiv.org/abs/2507.16257": _paper(
        "Quality Text, Robust Vision: The Role of Language in Enhancing Visual Robustness of Vision-Language Models",
        "Futa Waseda, Saku Sugawara, Isao Echizen",
        "ACM MM",
        2025,
    ),
    "https://arxiv.org/abs/2603.18598": _paper(
        "Complementary Text-Guided Attention for Zero-Shot Adversarial Robustness",
        "Lu Yu, Haiyang Zhang, Changsheng Xu",
        "TPAMI",
        2026,
    ),
    "https://arxiv.org/abs/2603.29410": _paper(
        "AGFT: Alignment-Guided Fine-Tuning for Zero-Shot Adversarial Robustness of Vision-Language Models",
        "Yubo Cui, Xianchao Guan, Zijun Xiong, Zheng Zhang",
        "CVPR",
        2026,
    ),
    "https://arxiv.org/abs/2604.11576": _paper(
        "Finetune Like You Pretrain: Boosting Zero-shot Adversarial Robustness in Vision-language Models",
        "Songlong Xing, Weijie Wang, Zhengyu Zhao, Jindong Gu, Philip Torr, Nicu Sebe",
        "CVPR Findings",
        2026,
    ),
    "https://doi.org/10.1145/3690624.3709296": _paper(
        "Stabilizing modality gap & lowering gradient norms improve zero-shot adversarial robustness of VLMs",
        "Junhao Dong, Piotr Koniusz, Xinghua Qu, Yew-Soon Ong",
        "KDD",
        2025,
    ),
}
"""The papers of the bundled cards. The keys are the URLs in the field `paper` of the cards."""
