"""A small shop that keeps its secrets apart: the log, the catalogue and the grants, and beside them the truth.

    simulate(ShopSettings(seed=7), Path("shop"))

    shop/log/date=YYYY-MM-DD/part-00000.parquet   what a shop would record
    shop/catalogue.parquet                        what it sells
    shop/grants.parquet                           what people allowed
    shop/truth/                                   what only the simulator knows: for checks, never for a job

It knows no ranker: what people see is drawn by popularity, and what they do with it follows a published click model.
`LiveShop` makes the same days one at a time, and shows lists that somebody else made; people react, and return or leave.
"""

from engine.activity.simulator.live import Lists, LiveShop, Visitor
from engine.activity.simulator.report import Course, DayReport, Slots, Tally
from engine.activity.simulator.settings import ShopSettings
from engine.activity.simulator.shop import ShopReport, simulate

__all__ = [
    "Course",
    "DayReport",
    "Lists",
    "LiveShop",
    "ShopReport",
    "ShopSettings",
    "Slots",
    "Tally",
    "Visitor",
    "simulate",
]
