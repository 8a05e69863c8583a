"""Gives Feast the data: definitions, offline file, online store, in the folder and Redis that the environment names."""

import datetime
import os
import pathlib

import pandas
from feast import FeatureStore

from dataset import IDS, NAMES, VALUES
from feast_repo.features import customer, features, model

CHUNK = 2500

frame = pandas.DataFrame(VALUES, columns=NAMES)
frame["entity_id"] = IDS
frame["event_timestamp"] = datetime.datetime.now(datetime.UTC)
frame.to_parquet(pathlib.Path(os.environ["COMPARE_FOLDER"]) / "offline.parquet")

store = FeatureStore(repo_path=str(pathlib.Path(__file__).resolve().parent / "feast_repo"))
store.apply([customer, features, model])
for start in range(0, len(frame), CHUNK):
    store.write_to_online_store("features", frame.iloc[start : start + CHUNK])
