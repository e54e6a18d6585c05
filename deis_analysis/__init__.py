from deis_analysis.process import *
from deis_analysis.process import grid
from deis_analysis.weights import quadrature_weights
