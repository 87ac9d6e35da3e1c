"""LoRA language experts (arXiv 2506.21555): a Whisper customised to some languages.

What the paper establishes: LoRA experts are prepared for each language on Whisper; then either they are fused, or their
knowledge is distilled. Gains of about 10 % relative where the language is known ("language-aware") and 15 % where it is
not ("language-agnostic"), against standard fine-tuning. All else here is our reading.

| part | here |
| --- | --- |
| experts | a LoRA for each language on q, k, v, out, fc1 and fc2 of all layers, trained with the true language token |
| fusion | `sum_l w_l D_l` with all of them side by side (`initial_experts`), one w for each utterance |
| known language | w one-hot, or beta for it and (1 - beta) / (L - 1) for each other one |
| unknown language | w of a router on the frozen encoder's states, or the frozen model's own posteriors |
| prompt | the known language; otherwise the one with the largest w |
| training of the fusion | the router alone (`train_only: routers`), or the experts along with it |
| one more language | another run of the first row, perhaps from the expert that `bin/nearest` names |

Where w comes from is in `moe_asr.methods.routes`. Experts of the most probable language alone (`best`) are a baseline:
predicted language, in two passes.
"""

from __future__ import annotations

from moe_asr.experts.fuse import ALONE

FUSION = ALONE
"""The router of a single expert and of several that are fused: each gets the weight that it is given."""
