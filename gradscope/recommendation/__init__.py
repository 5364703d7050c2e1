"""The clipping threshold from recorded norms and verified candidates. Pure functions over a Run."""

from gradscope.recommendation.percentiles import thresholds
from gradscope.recommendation.recommend import recommend
from gradscope.recommendation.snippets import snippet

__all__ = ["recommend", "snippet", "thresholds"]
