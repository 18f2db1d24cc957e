"""What every page shows: navigation, connection, units, login, answers to what people do."""

JAPANESE = {
    "Line": "ライン",
    "Alarms": "アラーム",
    "Releases": "リリース",
    "Fleet": "デバイス一覧",
    "Pages": "ページ",
    "Appearance": "表示",
    "As the device": "端末に合わせる",
    "Light": "ライト",
    "Dark": "ダーク",
    "Nothing is here": "ページがありません",
    "There is no page {path}.": "{path} というページはありません。",
    "This page cannot be shown now": "このページは今表示できません",
    "It is tried again every {n} s; the hub's log says more.": (
        "{n} 秒ごとに再試行します。詳細はハブのログを確認してください。"
    ),
    "Log out": "ログアウト",
    "Log in": "ログイン",
    "Name": "名前",
    "Password": "パスワード",
    "Name or password is wrong.": "名前またはパスワードが違います。",
    "Your role is not enough for this; ask somebody with the role {role}": (
        "この操作には権限が足りません。「{role}」に依頼してください。"
    ),
    "viewer": "閲覧者",
    "operator": "オペレーター",
    "engineer": "エンジニア",
    "broker connected": "ブローカー接続中",
    "broker away": "ブローカー切断",
    "The hub does not hear the broker: what devices say now is missing here.": (
        "ハブがブローカーに接続できません。現在のデバイスの情報は届いていません。"
    ),
    "The hub cannot write to its store: messages wait on the devices.": (
        "ハブがデータベースに書き込めません。メッセージはデバイス側で待機中です。"
    ),
    "The hub cannot read its store: what you see is old.": (
        "ハブがデータベースを読めません。表示内容は最新ではありません。"
    ),
    "No connection to the hub since {time}. What you see is old.": (
        "{time} からハブに接続できません。表示内容は最新ではありません。"
    ),
    "The connection to the hub is back.": "ハブとの接続が回復しました。",
    "no device {device} is known here": "デバイス {device} は登録されていません",
    "Back to the line": "ラインへ戻る",
    "no data since {time}": "{time} 以降データなし",
    "no data yet": "データ未受信",
    "not known now": "現在不明",
    "{n} s": "{n} 秒",
    "{n} min": "{n} 分",
    "{n} h": "{n} 時間",
    "{n} d": "{n} 日",
    "{span} ago": "{span}前",
    "camera": "カメラ",
    "microphone": "マイク",
    "series": "時系列",
    "online": "オンライン",
    "offline": "オフライン",
    "unknown": "不明",
    "ok": "正常",
    "problem": "異常あり",
    "none": "なし",
    "Cancel": "キャンセル",
    "touch to mark it, then copy": "触れると選択されます。コピーしてください",
    "{device}: {what} …": "{device}：{what} …",
    "{device}: {what}: done": "{device}：{what}：完了",
    "{device}: {what}: failed ({reason})": "{device}：{what}：失敗（{reason}）",
    "The device could not be asked: {reason}": "デバイスに要求できませんでした：{reason}",
    "Not allowed: {reason}": "権限がありません：{reason}",
    "Not done: {reason}": "実行できませんでした：{reason}",
}
