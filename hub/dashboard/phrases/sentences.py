"""Sentences that devices and the rules of the hub make up, as templates: what stands in braces may be anything.

What fits none stays English. More special ones stand before more general ones; what is found for the braces is looked
up in the same way. {name} is one name, without a blank, and {names} are names with " and " between them.
"""

# what is wrong with a window (lineside.quality.FLAGS)
FLAGS = {
    "no window came; is the sensor plugged in?": "データが来ません。センサーは接続されていますか？",
    "rate or channels are not those of the encoder; mend rate_hz or channels in [[sensors]]": (
        "サンプルレートかチャンネル数がエンコーダーと合いません。[[sensors]] の rate_hz か channels を直してください"
    ),
    "its encoder gives no numbers for it; roll the encoder back": (
        "エンコーダーが数値を出しません。エンコーダーを戻してください"
    ),
    "samples are missing; the cable, the bus or the machine is overloaded": (
        "サンプルが欠けています。ケーブル・バス・装置の負荷を確認してください"
    ),
    "the picture is black; is the lens covered or the light off?": (
        "画像が真っ黒です。レンズが覆われているか、照明が消えていませんか？"
    ),
    "the picture is white; lower the exposure or the light": "画像が真っ白です。露出か照明を下げてください",
    "the picture has lost its edges; is the lens dirty, fogged or turned?": (
        "画像がぼやけています。レンズの汚れ・曇り・ずれを確認してください"
    ),
    "the same picture comes again and again; restart the camera": (
        "同じ画像が繰り返されています。カメラを再起動してください"
    ),
    "the microphone gives no sound at all; is it muted or unplugged?": (
        "マイクから音が来ません。ミュートか未接続ではありませんか？"
    ),
    "the sound is cut at full scale; lower the microphone gain": "音が飽和しています。マイクのゲインを下げてください",
    "the sound has a constant offset and nothing else; check the microphone's supply": (
        "音に直流成分しかありません。マイクの電源を確認してください"
    ),
    "the series does not move; check the sensor's cable": "値が動きません。センサーのケーブルを確認してください",
    "the series has values that are not numbers; check the sensor's driver": (
        "数値でない値があります。センサーのドライバーを確認してください"
    ),
}

JAPANESE = {
    # an alarm whose cause the device has judged (edge.pipeline, edge.triage)
    "{text} (cause: {blamed}; {why})": "{text}（原因：{blamed}。{why}）",
    "the process": "工程",
    "undecided": "未確定",
    "{sensor} itself": "{sensor} 自体",
    "{name} and {names}": "{name} と {names}",
    # alarms that are over, and drift (edge.alarm)
    "{station}: normal again": "{station}：正常に戻りました",
    "{subject}: commissioned again": "{subject}：通常状態を再学習しました",
    "{sensor}: good again, back in the fusion": "{sensor}：正常に戻り、判定に再び使われています",
    "{drifted}, since about {time} UTC; compare it with normal running, mend it, or commission again if the line is "
    "well": "{drifted}（{time} UTC ごろから）。通常運転と比べ、修理するか、ラインに問題がなければ再学習してください",
    "{drifted} by {n} standard deviations": "{drifted}（標準偏差の {n} 倍）",
    "{sensor} says {more} than it used to": "{sensor} の寄与が以前より{more}",
    "{pair} belong together {more} than they used to": "{pair} の一致度が以前より{more}",
    "more": "高くなっています",
    "less": "低くなっています",
    "less steadily": "不安定になっています",
    "{sensor} no longer looks to its encoder as it used to": "{sensor} はエンコーダーから見て以前と異なります",
    "{who} is offline": "{who} はオフラインです",
    "{who} is stopped": "{who} は停止中です",
    "{who} is in {state}": "{who} は {state} 中です",
    "{sensor} has a sensor alarm": "{sensor} にセンサーアラームがあります",
    "every station at once: look for a common cause ({hint})": (
        "全ステーション同時：共通の原因を確認してください（{hint}）"
    ),
    "the light": "照明",
    "noise in the hall": "場内の騒音",
    "power, network or the material": "電源・ネットワーク・材料",
    '{device}: does not send recordings; set [evidence] send = "request" there': (
        '{device} は記録を送りません。デバイスの [evidence] send を "request" にしてください'
    ),
    "{file}: is not on the device (any more): the oldest go first; give [evidence] max_mb more room there": (
        "{file} はデバイスに残っていません（古いものから消えます）。[evidence] max_mb を増やしてください"
    ),
    "{file}: is still being written; ask again in some seconds": (
        "{file} は書き込み中です。数秒後に再度要求してください"
    ),
    "{device}: did not answer within {n} s; is it online? ask again": (
        "{device} が {n} 秒以内に応答しません。オンラインか確認して再度要求してください"
    ),
    "{device} is not known now": "{device} の状態が分かりません",
    "{device}: what ran at {time} is not known: {why}": "{device}：{time} に動作していたものは不明です（{why}）",
    "not real: {why}": "誤報：{why}",
    "real ({kind}): {why}": "本物（{kind}）：{why}",
    "real ({kind})": "本物（{kind}）",
    "real: {why}": "本物：{why}",
    "not real": "誤報",
    "real": "本物",
    "withdrawn": "取り消し",
    "{sensor} is far more unlike normal than the rest, and so is its background: {what}": (
        "{sensor} だけが大きく通常と異なり、背景も変わっています：{what}"
    ),
    "{sensor} is hardly unlike normal, but its background is: {what}": (
        "{sensor} はほぼ通常どおりですが、背景が変わっています：{what}"
    ),
    "{sensors} are unlike normal at once, {sensor} in its background too": (
        "{sensors} が同時に通常と異なり、{sensor} は背景も変わっています"
    ),
    "unlike normal: {sensors}; the background of {sensor} is as it was": (
        "通常と異なる：{sensors}。{sensor} の背景は変わっていません"
    ),
    "mostly {sensor} is a little unlike normal; the backgrounds are as they were": (
        "主に {sensor} が通常とわずかに異なります。背景は変わっていません"
    ),
    "no sensor alone is unlike normal": "単独で通常と異なるセンサーはありません",
    "{sensor} crackles: {n} clicks a second go to one side, as of a bad contact and of no sound": (
        "{sensor} に接触不良のような雑音：片側へのクリックが毎秒 {n} 回"
    ),
    "{sensor} picks up the mains: without {n} Hz and its multiples it is much more like normal": (
        "{sensor} に電源ハム：{n} Hz とその倍音を除くと通常に近づきます"
    ),
    "{sensor} is unlike normal, and there is no other sensor to compare it with": (
        "{sensor} が通常と異なりますが、比べるセンサーがありません"
    ),
    "{sensor} alone is unlike normal, and no longer agrees with the others": (
        "{sensor} だけが通常と異なり、他のセンサーと合わなくなりました"
    ),
    "{sensor} alone is unlike normal, and agrees with the others as it did": (
        "{sensor} だけが通常と異なりますが、他のセンサーとは合っています"
    ),
    "{share} of what is still at the picture's edge looks otherwise": "画像の端の静止部分の {share} が変わりました",
    "{share} of what is still at the picture's edge flickers": "画像の端の静止部分の {share} がちらついています",
    "{share} of the pitches sound fainter between the noises": "音の合間で {share} の音域が弱くなりました",
    "{station} is {how}: {share} of the evidence comes from {sensor} ({modality}){rest}": (
        "{station}：{how}。根拠の {share} は {sensor}（{modality}）{rest}"
    ),
    ", p = {p} (at most {most}, 95 %){rest}": "、p = {p}（95 % の確度で {most} 以下）{rest}",
    "unlike normal": "通常と異なります",
    "a little unlike normal, and stays so": "通常とわずかに異なる状態が続いています",
    "; look at the picture and listen, then tell real or not real": (
        "。画像と音を確認し、本物かどうかを記録してください"
    ),
    "{n} of {all} channels are watched": "{all} チャンネル中 {n} を監視中",
    "what is ordinary is being learned, {done} of {hours} h": "通常状態を学習中（{hours} 時間のうち {done}）",
    **FLAGS,
    **{f"{english}; {{problem}}": f"{japanese}。{{problem}}" for english, japanese in FLAGS.items()},
    "{device} has been offline for {seconds} s: {mend}": "{device} は {seconds} 秒間オフラインです。{mend}",
    "check its power and its network, then `systemctl status lineside-uplink` on it": (
        "電源とネットワークを確認し、デバイスで `systemctl status lineside-uplink` を実行してください"
    ),
    "{device} is back": "{device} が復帰しました",
    "offline; it catches up when it comes back": "オフライン。復帰後に自動で追いつきます",
    "not begun": "未開始",
    "has sent no manifest yet": "まだ構成を報告していません",
    "ring {n} of {all} opened: {whom}": "リング {n} / {all} を開始：{whom}",
    "ring {n} has it, watched for {span}": "リング {n} に導入済み、{span} 観察します",
    "ring {n} is well, the next one waits for a person": "リング {n} は良好、次のリングは承認待ちです",
    "finished: every device is to run it": "完了：全デバイスで使用します",
    "paused": "一時停止",
    "resumed": "再開",
    "aborted: {reason}": "取り消し：{reason}",
    "by the operator": "オペレーターによる",
    "no key of {device} is kept yet; `lineside deploy status` keeps the first one that it sees": (
        "{device} の鍵はまだ保管されていません。`lineside deploy status` が最初の鍵を保管します"
    ),
    "{sensor} ({modality}): {problem}": "{sensor}（{modality}）：{problem}",
    # refusals (hub.accounts, hub.dashboard.gate, hub.silence)
    "{who}: may not {action} as {role}; ask somebody with the role {needed}": (
        "{who}：「{action}」は{role}の権限ではできません。{needed}の権限を持つ人に依頼してください"
    ),
    "{who}: the session has ended; log in again": ("{who}：セッションが終了しました。もう一度ログインしてください"),
    "silence: its end must lie ahead, at most seven days; give another end": (
        "通知停止の終了は 7 日以内の未来の時刻にしてください"
    ),
    "label: {kind} is no kind of a real fault; name it in one line of at most {n} characters": (
        "{kind} は故障の種類にできません。1 行、{n} 文字以内で入力してください"
    ),
    "{device}: is {state} now; ask again when it is online": (
        "{device} は現在{state}です。オンラインになってから再度要求してください"
    ),
    "not known": "不明",
    "evidence: {n} recordings are asked for; ask again later": ("{n} 件の記録を要求中です。後で再度要求してください"),
    "acknowledge": "確認",
    "silence": "通知の停止",
    "label": "判定",
    "evidence": "記録の取得",
    "state": "状態の設定",
    "fault": "故障の模擬",
    "rollback": "元に戻す",
    "update": "更新",
    "commission": "通常状態の学習",
    "record": "録画・録音",
}
