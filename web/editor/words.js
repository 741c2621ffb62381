// The panel's words in the front-end's language. English words are the keys.

const WORDS = {
  ja: {
    "3D head: drag or use the arrow keys to turn it, double-click for the front":
      "3Dの頭部:ドラッグまたは矢印キーで回転、ダブルクリックで正面",
    "This input is no JSON object of numbers; moving a slider starts anew.":
      "この入力は数値のJSONオブジェクトではありません。スライダーを動かすと新しく始まります。",
    "Mirror: one slider moves the left and the right side": "ミラー:1つのスライダーで左右を動かす",
    "Show the surface normals, as Render Normals draws them": "「法線をレンダリング」で描かれる法線を表示",
    "Reset all sliders": "すべてのスライダーをリセット",
    "Save this expression as a preset": "この表情をプリセットとして保存", "Forget this preset": "このプリセットを削除",
    "Name of the preset": "プリセットの名前", Saved: "保存済み", "Play the keyframes": "キーフレームを再生",
    "A keyframe at this frame: moving a slider sets one": "このフレームのキーフレーム:スライダーを動かすと設定されます",
    Frame: "フレーム", "Frame number": "フレーム番号", "How it goes on to the next keyframe": "次のキーフレームまでの変わり方",
    linear: "直線", "ease-in": "イーズイン", "ease-out": "イーズアウト", "ease-in-out": "イーズインアウト", hold: "保持",
    "The result": "結果", "Go on with what is dialed": "調整した内容で先に進む",
    "Run the workflow and show the result while sliders move": "ワークフローを実行し、スライダーを動かしながら結果を表示",
    "To see the result, connect model, reference, vae, pose_encoder and source":
      "結果を見るには model、reference、vae、pose_encoder、source を接続してください",
    "Waiting until the run comes to this node …": "実行がこのノードに来るのを待っています…",
    Preset: "プリセット", Custom: "カスタム", "(left)": "(左)", "(right)": "(右)",
    Neutral: "ニュートラル", Laugh: "笑い", Surprise: "驚き", Sadness: "悲しみ", Anger: "怒り", Fear: "恐れ",
    Disgust: "嫌悪", Blink: "まばたき", Wink: "ウィンク", Kiss: "キス", "Ah (speech)": "あ(発話)",
    "Ee (speech)": "い(発話)", "Oh (speech)": "お(発話)",
    Head: "頭", Framing: "フレーミング", Gaze: "視線", "Eyes and lids": "目とまぶた", Brows: "眉", Jaw: "顎", Mouth: "口",
    "Cheeks and nose": "頬と鼻",
    Turn: "左右に回す", Nod: "うなずく", Tilt: "傾ける", Zoom: "ズーム", "Move sideways": "左右に移動", "Move up": "上に移動",
    "Look sideways": "横を見る", "Look up": "上を見る", Close: "閉じる", "Open wide": "見開く", Squint: "細める",
    "Raise inner": "内側を上げる", "Raise outer": "外側を上げる", Lower: "下げる", "Open jaw": "口を開ける",
    "Jaw sideways": "顎を横へ", "Jaw forward": "顎を前へ", Smile: "笑顔", Frown: "口角を下げる", Pucker: "すぼめる",
    Funnel: "丸く突き出す", "Close lips": "唇を閉じる", "Mouth sideways": "口を横へ", Stretch: "横に引く", Dimple: "えくぼ",
    "Press lips": "唇を押す", "Raise upper lip": "上唇を上げる", "Lower lower lip": "下唇を下げる",
    "Roll upper lip": "上唇を巻き込む", "Roll lower lip": "下唇を巻き込む", "Shrug upper lip": "上唇を押し上げる",
    "Shrug lower lip": "下唇を押し上げる", "Tongue out": "舌を出す", "Puff cheeks": "頬を膨らます", "Raise cheeks": "頬を上げる",
    Sneer: "鼻にしわを寄せる",
  },
  zh: {
    "3D head: drag or use the arrow keys to turn it, double-click for the front": "3D 头部:拖动或用方向键旋转,双击回到正面",
    "This input is no JSON object of numbers; moving a slider starts anew.": "此输入不是由数值组成的 JSON 对象;移动滑块将重新开始。",
    "Mirror: one slider moves the left and the right side": "镜像:一个滑块同时控制左右两侧",
    "Show the surface normals, as Render Normals draws them": "显示法线,与 Render Normals 的结果一致",
    "Reset all sliders": "重置所有滑块",
    "Save this expression as a preset": "将此表情保存为预设", "Forget this preset": "删除此预设",
    "Name of the preset": "预设名称", Saved: "已保存", "Play the keyframes": "播放关键帧",
    "A keyframe at this frame: moving a slider sets one": "此帧的关键帧:移动滑块即可设置",
    Frame: "帧", "Frame number": "帧号", "How it goes on to the next keyframe": "到下一关键帧的变化方式",
    linear: "线性", "ease-in": "缓入", "ease-out": "缓出", "ease-in-out": "缓入缓出", hold: "保持",
    "The result": "结果", "Go on with what is dialed": "以当前调整继续",
    "Run the workflow and show the result while sliders move": "运行工作流,并在移动滑块时显示结果",
    "To see the result, connect model, reference, vae, pose_encoder and source":
      "要查看结果,请连接 model、reference、vae、pose_encoder 和 source",
    "Waiting until the run comes to this node …": "正在等待运行到此节点…",
    Preset: "预设", Custom: "自定义", "(left)": "(左)", "(right)": "(右)",
    Neutral: "中性", Laugh: "大笑", Surprise: "惊讶", Sadness: "悲伤", Anger: "愤怒", Fear: "恐惧", Disgust: "厌恶",
    Blink: "闭眼", Wink: "眨单眼", Kiss: "亲吻", "Ah (speech)": "啊(发音)", "Ee (speech)": "衣(发音)", "Oh (speech)": "哦(发音)",
    Head: "头部", Framing: "构图", Gaze: "视线", "Eyes and lids": "眼睛与眼睑", Brows: "眉毛", Jaw: "下颌", Mouth: "嘴部",
    "Cheeks and nose": "脸颊与鼻子",
    Turn: "左右转", Nod: "点头", Tilt: "侧倾", Zoom: "缩放", "Move sideways": "水平移动", "Move up": "垂直移动",
    "Look sideways": "左右看", "Look up": "上下看", Close: "闭合", "Open wide": "睁大", Squint: "眯眼",
    "Raise inner": "抬起内侧", "Raise outer": "抬起外侧", Lower: "压低", "Open jaw": "张嘴", "Jaw sideways": "下颌侧移",
    "Jaw forward": "下颌前伸", Smile: "微笑", Frown: "嘴角下垂", Pucker: "嘟嘴", Funnel: "圆唇", "Close lips": "合拢嘴唇",
    "Mouth sideways": "嘴部侧移", Stretch: "横向拉伸", Dimple: "酒窝", "Press lips": "抿嘴", "Raise upper lip": "抬起上唇",
    "Lower lower lip": "下拉下唇", "Roll upper lip": "上唇内卷", "Roll lower lip": "下唇内卷", "Shrug upper lip": "上唇上耸",
    "Shrug lower lip": "下唇上耸", "Tongue out": "伸舌", "Puff cheeks": "鼓腮", "Raise cheeks": "抬起脸颊", Sneer: "皱鼻",
  },
};

// A function from English words to those of a locale such as "ja" or "zh-TW"; what it doesn't know stays English.
export function translator(locale = "en") {
  const words = WORDS[locale] ?? WORDS[locale.split("-")[0]] ?? {};
  return (text) => words[text] ?? text;
}
