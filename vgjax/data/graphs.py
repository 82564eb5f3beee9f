"""A graph that needs no download."""

import numpy as np

from vgjax.checks import kinds

# Of each member, the later ones that he met outside of the club.
_KARATE = (
    "1 2 3 4 5 6 7 8 10 11 12 13 17 19 21 31,2 3 7 13 17 19 21 30,3 7 8 9 13 27 28 32,7 12 13,6 10,6 10 16,16,,"
    "30 32 33,33,,,,33,32 33,32 33,,,32 33,33,32 33,,32 33,25 27 29 32 33,25 27 31,31,29 33,33,31 33,32 33,32 33,"
    "32 33,33,"
)


@kinds
def karate_club() -> np.ndarray:
    """The adjacency matrix of Zachary's karate club: 34 members, 78 friendships, shape ``(34, 34)``, 0 and 1.

    Source: Zachary 1977, "An information flow model for conflict and fission in small groups", in the public domain.
    """
    adjacency = np.zeros((34, 34))
    for i, friends in enumerate(_KARATE.split(",")):
        adjacency[i, [int(friend) for friend in friends.split()]] = 1
    return adjacency + adjacency.T
