"""The training loop on Lightning Fabric, its loaders, budgets and metrics."""

from repertory.training.budget import Budget
from repertory.training.evaluate import higher_is_better, main_metric, metrics, predict
from repertory.training.learner import Learner
from repertory.training.loaders import BatchLoader
from repertory.training.loop import train

__all__ = ["BatchLoader", "Budget", "Learner", "higher_is_better", "main_metric", "metrics", "predict", "train"]
