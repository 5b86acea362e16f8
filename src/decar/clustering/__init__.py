"""Vectors to labels: whitening, K-Means, Power Iteration Clustering, and what is measured of their labels."""

from decar.clustering.base import Assignment, Clusterer
from decar.clustering.kmeans import Centres, KMeans
from decar.clustering.model import Clusters, Placed, make_clusters
from decar.clustering.nearest import faiss_on
from decar.clustering.pic import PIC
from decar.clustering.stats import nmi
from decar.clustering.whiten import Whitening, affordable_dim, l2_normalize, prepare, whiten

__all__ = [
    "PIC",
    "Assignment",
    "Centres",
    "Clusterer",
    "Clusters",
    "KMeans",
    "Placed",
    "Whitening",
    "affordable_dim",
    "faiss_on",
    "l2_normalize",
    "make_clusters",
    "nmi",
    "prepare",
    "whiten",
]
