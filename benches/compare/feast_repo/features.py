"""The data as Feast is told of it: one entity, one feature view of 20 features. See dataset.py."""

import datetime
import os

from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float64

customer = Entity(name="customer", join_keys=["entity_id"], value_type=ValueType.STRING)

features = FeatureView(
    name="features",
    entities=[customer],
    ttl=datetime.timedelta(0),  # none: no age is checked
    schema=[Field(name=f"feature_{number:02}", dtype=Float64) for number in range(20)],
    source=FileSource(path=f"{os.environ['COMPARE_FOLDER']}/offline.parquet", timestamp_field="event_timestamp"),
    online=True,
)

model = FeatureService(name="model", features=[features])
