"""One alarm: its recording, why it was raised, what people say of it."""

JAPANESE = {
    "No such alarm is known here": "このアラームは登録されていません",
    "What it saw and heard": "そのときの映像と音",
    "The recording is being opened …": "記録を開いています…",
    "Your role does not open recordings; ask an operator.": (
        "この権限では記録を開けません。オペレーターに依頼してください。"
    ),
    "The recording is on its way: {n} %": "記録を受信中：{n} %",
    "The recording was asked for.": "記録を要求しました。",
    "The device keeps no recording of this alarm.": "このアラームの記録はデバイスにありません。",
    "This hub asks devices for no recordings; [hub] evidence of the plant file allows it.": (
        "このハブは記録を要求しません。設備ファイルの [hub] evidence で許可できます。"
    ),
    "The recording is on the device; it is sent when somebody asks for it.": (
        "記録はデバイス内にあります。要求すると送信されます。"
    ),
    "Get the recording": "記録を取得する",
    "Download for Foxglove (MCAP)": "Foxglove 用にダウンロード（MCAP）",
    "onset": "開始",
    "alarm": "アラーム",
    "Time in the recording": "記録内の時刻",
    "Play": "再生",
    "Pause": "一時停止",
    "Spectrogram of {sensor}, 0 to {khz} kHz": "{sensor} のスペクトログラム（0～{khz} kHz）",
    "{sensor} at {time} s": "{sensor}：{time} 秒",
    "Values of {sensor}": "{sensor} の値",
    "Why (if you want to say)": "理由（任意）",
    "Real": "本物",
    "Not real": "誤報",
    "Which fault": "故障の種類",
    "Another one": "その他",
    "Say so": "記録する",
    "Nobody said yet what it was.": "まだ判定されていません。",
    "real: {kind}": "本物：{kind}",
    "said by {who}, {time}": "{who} が判定（{time}）",
    "Take it back": "取り消す",
    "The label is kept, its recording is missing: {reason}": "判定を記録しました。映像と音はまだありません：{reason}",
    "An alarm of the sensor itself: nothing was weighed.": "センサー自体のアラームのため、寄与の計算はありません。",
    "The hub's own alarm: the device is away.": "ハブ自身のアラーム：デバイスと通信できません。",
    "offline for more than {span}": "{span} 以上オフライン",
    "The moment that raised it is no longer at the hub: without is not known.": (
        "発生時のスコアがハブに残っていないため、各センサーを除いた値は不明です。"
    ),
    "ordinary": "通常の範囲",
    "strange all the same": "それでも異常",
    "Without {sensor} p would be {p} instead of {now}: {told}": "{sensor} がなければ p = {p}（実際は {now}）：{told}",
    "Sensor or process?": "センサーか工程か",
    "The device did not say.": "デバイスは判定していません。",
    "Nearest normal moments before": "直前の正常時で最も近いもの",
    "The hub keeps no embedding of this moment, or of a normal one before it.": (
        "この瞬間、またはその前の正常時の埋め込みがハブにありません。"
    ),
    "Moment": "時刻",
    "Similarity (cosine)": "類似度（コサイン）",
    "Of {n} normal moments, by the embeddings that the hub keeps.": "正常時 {n} 件の埋め込みとの比較です。",
    "Beside normal running": "正常時との比較",
    "in the alarm": "アラーム時",
    "normal, {time}": "正常時（{time}）",
    "Of all normal running that the device learned, what its encoders find most like it.": (
        "デバイスが学習した正常運転のうち、エンコーダーから見て最も近いものです。"
    ),
    "Versions and thresholds in force": "当時のバージョンとしきい値",
    "Signed by the device": "デバイスの署名",
    "yes": "あり",
    "no": "なし（未確認）",
    "p ≤ {p} in {n} of {of} moments": "{of} 回中 {n} 回 p ≤ {p}",
    "one false alarm in {n} days on average": "誤報は平均 {n} 日に 1 回",
    "{n} windows in a row that are not well": "連続 {n} 回の不良",
    "Version {n} would raise it again.": "バージョン {n} でも発生します。",
    "Version {n} would no longer raise it.": "バージョン {n} では発生しません。",
    "Whether version {n} would raise it cannot be told: {reason}": "バージョン {n} で発生するかは不明：{reason}",
    "What labels changed": "判定による変化",
    "{real} alarms were called real, {other} not real": "本物 {real} 件、誤報 {other} 件と判定",
    "no release was made since": "その後のリリースはまだありません",
    "Version {n} raises {kept} of {real} real ones again, and {gone} of {other} that were not real no longer": (
        "バージョン {n}：本物 {real} 件中 {kept} 件は引き続き発生、誤報 {other} 件中 {gone} 件は発生しなくなりました"
    ),
    "{n} cannot be told": "不明 {n} 件",
    "What was done": "対応の履歴",
    "When": "時刻",
    "What": "内容",
    "Who": "担当",
    "Why": "理由",
    "raised": "発生",
    "cleared": "復旧",
    "acknowledged": "確認",
    "silenced": "通知停止",
    "silence ended": "通知再開",
    "told": "通知",
    "could not be told": "通知失敗",
    "labelled": "判定",
}
