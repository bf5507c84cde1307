from packtrain.api.checking import doctor as doctor
from packtrain.api.checking import runs as runs
from packtrain.api.data import diff as diff
from packtrain.api.data import estimate as estimate
from packtrain.api.data import import_dataset as import_dataset
from packtrain.api.data import prepare as prepare
from packtrain.api.data import train_tokenizer as train_tokenizer
from packtrain.api.data import verify as verify
from packtrain.api.documents import Documents as Documents
from packtrain.api.documents import PreparedDocument as PreparedDocument
from packtrain.api.documents import TrainingRows as TrainingRows
from packtrain.api.documents import open_dataset as open_dataset
from packtrain.api.exporting import export as export
from packtrain.api.exporting import push as push
from packtrain.api.inspection import inspect as inspect
from packtrain.api.measuring import evaluate as evaluate
from packtrain.api.models import LoadedModel as LoadedModel
from packtrain.api.models import load as load
from packtrain.api.serving import serve as serve
from packtrain.api.training import RunMetrics as RunMetrics
from packtrain.api.training import ladder as ladder
from packtrain.api.training import load_config as load_config
from packtrain.api.training import metrics as metrics
from packtrain.api.training import plan as plan
from packtrain.api.training import report as report
from packtrain.api.training import resume as resume
from packtrain.api.training import train as train
from packtrain.errors import GuardError as GuardError
from packtrain.errors import Interrupted as Interrupted
from packtrain.errors import PacktrainError as PacktrainError
from packtrain.errors import UserError as UserError

__version__: str
__all__: list[str]
