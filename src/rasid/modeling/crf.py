"""A linear-chain conditional random field (Lafferty et al. 2001) over the tags of a paragraph's words.

Letters of the shapes as in `rasid.modeling.model`. Decoding is that of `rasid.decoding`, which takes the scores of
transitions out of the model's settings.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rasid.decoding import allowed_transitions

ILLEGAL = -10.0  # added to the score of a transition that IOB2 forbids; finite, since soft targets hold some of them


class TagTransitions(nn.Module):
    """Scores of one tag after another, and the loss under them.

    Illegal transitions are all but impossible in training too (Wei et al. 2021, https://aclanthology.org/2021.naacl-main.163),
    so that the model is trained on what it is asked for.
    """

    def __init__(self, tags: int):
        super().__init__()
        self.learned = nn.Embedding(tags + 1, tags)
        self.penalty = np.where(allowed_transitions(tags), 0.0, ILLEGAL).astype(np.float32)

    def scores(self) -> Tensor:
        """[T + 1, T], of tag `j` after tag `i`; row T is the start of a paragraph."""
        weight = self.learned.weight
        return weight + torch.from_numpy(self.penalty).to(weight.device)

    def forward(
        self, logits: Tensor, tags: Tensor, starts: Tensor | None = None, targets: Tensor | None = None
    ) -> Tensor:
        """Negative log-likelihood of the tags, summed over all paragraphs.

        Args:
            logits: float32 [B, W, T].
            tags: int64 [B, W], negative on padding.
            starts: int64 [B, W], 1 for the first word of each paragraph; where not given, windows are paragraphs.
            targets: float [B, W, T], probabilities of the tags, 0 on padding, where `tags` are not certain: the loss is
                then what is expected under them.
        """
        size, real = logits.shape[-1], (tags >= 0)[..., None]
        # What stands before the first word: where the window cuts an entity, an inside tag like its own.
        cut = (tags[:, 0] > 0) & (tags[:, 0] % 2 == 0)
        first = torch.where(cut, tags[:, 0], size)  # [B], rows of the scores
        scores = self.scores()
        if targets is None:
            targets = F.one_hot(tags.clamp(min=0), size) * real
        restart = torch.zeros_like(real) if starts is None else starts.bool()[..., None]

        before = torch.where(restart, F.one_hot(torch.full_like(tags, size)), F.pad(targets, (0, 1, 1, -1)))
        before[:, 0] = F.one_hot(first, size + 1)  # [B, W, T + 1]
        expected = (logits * targets).sum() + (before[..., None] * scores * targets[:, :, None]).sum()

        total = scores[first] + logits[:, 0]  # [B, T], of all sequences up to a word, by its tag
        for w in range(1, logits.shape[1]):
            on = torch.logsumexp(total[..., None] + scores[:-1], 1)
            anew = torch.logsumexp(total, -1, keepdim=True) + scores[-1]
            total = torch.where(real[:, w], torch.where(restart[:, w], anew, on) + logits[:, w], total)
        return torch.logsumexp(total, -1).sum() - expected
