"""What is measured: of tables (exactness, order, law, distance), of runs (errors and their budget), of laws."""

from deis_analysis import lazy

__all__, __getattr__ = lazy.names(
    __name__,
    {
        "measurement": "Measurement distance exact_transfer exactness_degree measure step_counts transfer",
        "exactness": "step_moment",
        "orders": "OrderEstimate amplification observed_order strong_order weak_order",
        "law": "affine_form law_error output_law strong_distance",
        "errors": "extrapolation_error global_error local_errors transported_errors walk",
        "budget": "ErrorBudget error_budget",
        "laws_of_budget": "LawBudget law_budget",
        "distances": "Distance diffused energy_distance gaussian_wasserstein2 wasserstein2 wasserstein2_between "
        "wasserstein2_floor",
        "likelihood": "Likelihood bits_per_dim log_likelihood log_likelihood_rk45",
    },
)
