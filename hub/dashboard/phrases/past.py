"""The alarms of a day that is over."""

JAPANESE = {
    "Alarms of the last day": "直近 24 時間のアラーム",
    "Alarms of another day": "別の日のアラーム",
    "the day before": "前日",
    "the day after": "翌日",
    "Day": "日付",
    "The alarms are being looked up …": "アラームを検索しています…",
    "Alarms on {day}: {n}": "{day} のアラーム：{n} 件",
    "The first {n} alarms on {day}; all of them are in /api/v1/export/alarms": (
        "{day} の最初の {n} 件です。すべては /api/v1/export/alarms にあります。"
    ),
}
