"""Versions, rollouts and the way back."""

JAPANESE = {
    "Encoders": "エンコーダー",
    "Modality": "モダリティ",
    "Version": "バージョン",
    "Previous": "以前",
    "Runs on": "実行環境",
    "Device is": "デバイス",
    "Roll back": "元に戻す",
    "Roll back now": "今すぐ戻す",
    "Roll back {modality} of {device}?": "{device} の {modality} を元に戻しますか？",
    "roll back {modality}": "{modality} を元に戻す",
}
