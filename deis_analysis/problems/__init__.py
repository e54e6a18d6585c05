"""Models with known answers: mixtures with exact flows, data sets as mixtures, and systems next to them."""

from deis_analysis import lazy

__all__, __getattr__ = lazy.names(
    __name__,
    {
        "mixture": "GaussianMixture ProductMixture UnresolvedFlowWarning",
        "denoiser": "IdealDenoiser ideal_denoiser",
        "interpolants": "Interpolant Scale",
        "log_normal": "MultiplicativeNoise",
        "painters": "gaussian_of teleport",
        "posterior": "components condition moment_closure",
    },
)
