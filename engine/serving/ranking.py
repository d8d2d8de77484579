"""RankingService: message -> engine call -> message."""

from __future__ import annotations

from dataclasses import replace

import grpc
from bodega.v1 import ranking_pb2, ranking_pb2_grpc

from engine.errors import NotBuilt
from engine.serving import limits
from engine.serving.asking import Ask
from engine.serving.errors import fault_of, problem_of
from engine.serving.explaining import Lately, explain
from engine.serving.recommend import Recommender
from engine.serving.replica import Replica
from engine.serving.similar import similar
from engine.serving.translate import ask_of, explain_response, recommend_response, similar_response


class RankingServicer(ranking_pb2_grpc.RankingServiceServicer):
    """Lists for a person."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._recommender = Recommender(replica)
        self._lately = Lately()

    def Recommend(
        self, request: ranking_pb2.RecommendRequest, context: grpc.ServicerContext
    ) -> ranking_pb2.RecommendResponse:
        """One list."""
        ask = ask_of(request)
        answer = self._recommender.recommend(ask)
        response = recommend_response(answer, self._degraded())
        self._lately.remember(response.recommendation_id, ask, answer.made_us)
        self._replica.live.served(response.recommendation_id, answer)
        return response

    def BatchRecommend(
        self, request: ranking_pb2.BatchRecommendRequest, context: grpc.ServicerContext
    ) -> ranking_pb2.BatchRecommendResponse:
        """Many lists; a request that is refused gives a problem in its place, and the others go on."""
        results = []
        for each in request.requests:
            if not context.is_active():  # cancelled, or past its deadline: nobody reads the rest
                break
            try:
                limits.check(each)
                response = self.Recommend(each, context)
            except Exception as error:  # noqa: BLE001 - one person's fault, whatever it is, is not another's
                results.append(ranking_pb2.BatchRecommendResult(problem=problem_of(fault_of(error))))
            else:
                results.append(ranking_pb2.BatchRecommendResult(response=response))
        return ranking_pb2.BatchRecommendResponse(results=results)

    def Similar(
        self, request: ranking_pb2.SimilarRequest, context: grpc.ServicerContext
    ) -> ranking_pb2.SimilarResponse:
        """Items like an item."""
        asked = request.context
        ask = Ask(
            surface=asked.surface,
            region=asked.region,
            item_id=request.item_id,
            basket=tuple(asked.basket_item_ids),
            global_privacy_control=asked.global_privacy_control,
            minor=asked.minor,
            limit=request.limit,
        )
        return similar_response(similar(self._replica, ask), self._degraded())

    def Rank(self, request: ranking_pb2.RankRequest, context: grpc.ServicerContext) -> ranking_pb2.RankResponse:
        """Not built yet."""
        raise NotBuilt(
            "Rank is declared and not built yet.", "Use Recommend, with exclude_item_ids or only_categories."
        )

    def Explain(
        self, request: ranking_pb2.ExplainRequest, context: grpc.ServicerContext
    ) -> ranking_pb2.ExplainResponse:
        """Why a list, or an item of it, is what it is."""
        made_us = None
        if request.recommendation_id:
            ask, made_us = self._lately.of(request.recommendation_id, request.user_id)
        else:
            ask = ask_of(ranking_pb2.RecommendRequest(user_id=request.user_id, context=request.context))
        level = request.personalization or ask.level
        ask = replace(ask, level=level, consent_token=request.consent_token)
        explained = explain(self._replica, self._recommender, ask, request.item_id, made_us)
        return explain_response(explained, self._degraded())

    def _degraded(self) -> list[str]:
        return [code for code, _ in self._replica.problems()]
