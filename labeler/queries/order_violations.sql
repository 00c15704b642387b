-- images whose head is not above the upper body, or whose upper body is not above the legs
with centres as (
    select label_run, dataset, image_id, any_value(path) as path,
        any_value((y_min + y_max) / 2) filter (part = 'head') as head_y,
        any_value((y_min + y_max) / 2) filter (part = 'upper_body') as upper_body_y,
        any_value((y_min + y_max) / 2) filter (part = 'legs') as legs_y
    from labels
    where status = 'ok'
    group by label_run, dataset, image_id
)
select * from centres
where head_y >= upper_body_y or upper_body_y >= legs_y or head_y >= legs_y
order by label_run, dataset, path
