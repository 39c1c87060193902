"""The format reward: does a response follow its grammar?"""

from prism_cli.responses import Response


def format_reward(response: Response) -> float:
    """1.0 for a well-formed response, else 0.0."""
    return float(response.well_formed)
