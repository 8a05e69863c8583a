"""The glue that a feature store replaces: Django REST framework, Redis as a cache aside, MongoDB behind it.

Written as a team would that cares: one MGET for a batch, one query for what it lacks, pooled connections, JSON, no
database, session, authentication or middleware that is not needed. What it leaves open is what such glue leaves open: a
write between its query and its SET stays hidden until the TTL ends.

    gunicorn --workers 2 --threads 4 django_glue:application
"""

import json
import os

import django
import pymongo
import redis
from django.conf import settings
from django.core.wsgi import get_wsgi_application

settings.configure(
    SECRET_KEY="not used",
    ALLOWED_HOSTS=["127.0.0.1"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=["rest_framework"],
    REST_FRAMEWORK={
        "DEFAULT_AUTHENTICATION_CLASSES": [],
        "DEFAULT_PERMISSION_CLASSES": [],
        "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
        "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
        "UNAUTHENTICATED_USER": None,
    },
)
django.setup()

from django.urls import path  # noqa: E402  (only once Django is set up)
from rest_framework.exceptions import ValidationError  # noqa: E402
from rest_framework.response import Response  # noqa: E402
from rest_framework.views import APIView  # noqa: E402

MAX_IDS = 1000
TTL_SECONDS = 3600

cache = redis.Redis.from_url(os.environ["GLUE_REDIS_URL"])
records = pymongo.MongoClient(os.environ["GLUE_MONGO_URI"]).glue.features


def read(ids: list[str]) -> dict[str, dict[str, float]]:
    """The features by id; an id that does not exist is not in it."""
    keys = [f"features:{entity_id}" for entity_id in ids]
    found = {entity_id: json.loads(hit) for entity_id, hit in zip(ids, cache.mget(keys)) if hit is not None}
    missing = [entity_id for entity_id in ids if entity_id not in found]
    if missing:
        with cache.pipeline(transaction=False) as pipeline:
            for record in records.find({"_id": {"$in": missing}}):
                found[record["_id"]] = record["features"]
                pipeline.set(f"features:{record['_id']}", json.dumps(record["features"]), ex=TTL_SECONDS)
            pipeline.execute()
    return found


class Features(APIView):
    """GET /features?ids=a,b or POST {"ids": ["a", "b"]}."""

    def get(self, request):
        return self.answer(request.query_params.get("ids", "").split(","))

    def post(self, request):
        return self.answer(request.data.get("ids"))

    def answer(self, ids):
        if not isinstance(ids, list) or not 0 < len(ids) <= MAX_IDS or not all(isinstance(i, str) and i for i in ids):
            raise ValidationError({"ids": f"1 to {MAX_IDS} ids"})
        return Response({"features": read(ids)})


urlpatterns = [path("features", Features.as_view())]
application = get_wsgi_application()
