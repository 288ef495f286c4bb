"""What training is: a task's objective, fitting, and in which order cutting and training follow each other."""

from . import detection as detection  # registers them
from . import tasks as tasks
